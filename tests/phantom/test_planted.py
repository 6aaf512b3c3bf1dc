"""Studies with bleeds that are faint at their ends, and with shuffled slices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from phantom import dataset
from phantom.dataset import Summary
from phantom.planted import FAINT, make_planted, visibility
from phantom.study import Study, make_study
from pipeline.cli.main import main

SEED = 7


@pytest.fixture(scope="module")
def patient() -> int:
    """Return a patient with a bleed."""
    return next(patient for patient in range(20) if make_study(SEED, patient).labels[:, -1].sum() > 4)


@pytest.fixture(scope="module")
def studies(patient: int) -> tuple[Study, Study, Study]:
    """Return a study with blood, the same one without it, and the same one with faint edges."""
    bare = make_study(SEED, patient, bloodless=True)
    return make_study(SEED, patient), bare, make_planted(SEED, patient, edges=True)


def test_edges_are_faint_and_unlabelled_slices_have_no_blood(studies: tuple[Study, Study, Study]) -> None:
    full, bare, planted = studies
    assert np.array_equal(full.labels, planted.labels)
    assert not bare.labels.any()
    shares = visibility(full.labels)
    assert FAINT in shares
    for share, with_blood, without, mixed in zip(shares, full.hu, bare.hu, planted.hu, strict=True):
        expected = without + share * (with_blood - without)
        assert np.abs(mixed - expected).max() <= 0.5 + 1e-3
    edge = int(np.flatnonzero(shares == np.float32(FAINT))[0])
    assert np.abs(planted.hu[edge] - bare.hu[edge]).mean() < 0.1 * np.abs(full.hu[edge] - bare.hu[edge]).mean()


def test_visibility_is_that_of_the_most_visible_bleed() -> None:
    labels = np.zeros((10, 6), np.uint8)
    labels[1:5, 0] = labels[4:9, 1] = labels[1:9, 5] = 1
    wanted = [0, FAINT, 1, 1, FAINT, 1, 1, 1, FAINT, 0]
    np.testing.assert_allclose(visibility(labels), wanted, rtol=1e-6)
    labels[:, :] = 0
    labels[3:5, 2] = labels[3:5, 5] = 1
    assert visibility(labels).tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_shuffling_changes_positions_but_not_pixels_and_labels(
    patient: int, studies: tuple[Study, Study, Study]
) -> None:
    full = studies[0]
    other, again = (make_planted(SEED, patient, shuffled=True) for _ in range(2))
    assert np.array_equal(other.stored, full.stored)
    assert np.array_equal(other.labels, full.labels)
    assert other.uids == full.uids
    assert not np.array_equal(other.geometry.positions, full.geometry.positions)
    assert sorted(other.geometry.positions[:, 2]) == sorted(full.geometry.positions[:, 2])
    assert np.array_equal(other.geometry.positions, again.geometry.positions)


def test_a_study_is_unchanged_without_options() -> None:
    assert np.array_equal(make_planted(SEED, 0).stored, make_study(SEED, 0).stored)


def test_the_command_passes_its_options_on(
    patient: int, studies: tuple[Study, Study, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers: list[Any] = []

    def write(*_: object, make: object, **__: object) -> Summary:
        makers.append(make)
        return Summary(1, 1, 0, {})

    monkeypatch.setattr(dataset, "write", write)
    for options in ([], ["--faint-edges"], ["--shuffled"]):
        result = CliRunner().invoke(main, ["phantom", "--out", str(tmp_path), "--patients", "1", *options])
        assert result.exit_code == 0, result.output
    plain, faint, shuffled = (make(SEED, patient, 0) for make in makers)
    full, _, planted = studies
    assert np.array_equal(plain.stored, full.stored)
    assert np.array_equal(faint.stored, planted.stored)
    assert np.array_equal(faint.geometry.positions, plain.geometry.positions)
    assert np.array_equal(shuffled.stored, full.stored)
    assert not np.array_equal(shuffled.geometry.positions, plain.geometry.positions)

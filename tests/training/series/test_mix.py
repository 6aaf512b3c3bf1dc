"""Test the share of a head: 0 if it is no better than chance, and nearly 1 if it is much better."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.fake_cache import CLASSES, write_cache
from testkit.tiny_run import HERE, settings
from training.errors import RunError
from training.run.job import begin
from training.run.runs import Run
from training.scores.pooling import at_level
from training.scores.predictions import Predictions
from training.series.mix import SHARES, choose_mix, read_mix, sigmoid, smallest_share

PATIENTS, SLICES = 40, 6
OWNER = np.repeat(np.arange(PATIENTS), SLICES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("mix")
    fake = write_cache(folder / "c.zarr", patients=8, slices=2)
    return begin(folder / "run", fake.path, settings(), HERE)[0]


def drawn(seed: int) -> tuple[Predictions, np.ndarray]:
    """Return slices of some patients, and logits from whose probabilities the labels are drawn."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, (PATIENTS * SLICES, len(CLASSES)))
    labels = (rng.random(logits.shape) < sigmoid(logits)).astype(float)
    names = [f"P{patient:02d}" for patient in OWNER]
    slices = pd.DataFrame({"patient_id": names, "study_instance_uid": names, "series_instance_uid": names})
    return Predictions(slices, tuple(CLASSES), labels, sigmoid(logits)), logits


def test_a_random_head_has_share_0_and_an_informed_one_a_large_share(run: Run) -> None:
    kept = []
    for seed in range(10):
        known, logits = drawn(seed)
        noise = np.random.default_rng(100 + seed).normal(0, 1, logits.shape)
        kept.append(choose_mix(run, known, logits, noise))
        informed = choose_mix(run, known, logits, 3 * (2 * known.labels - 1))
        assert (informed > 0.8).all()
        assert read_mix(run).tolist() == informed.tolist()
    assert np.mean(np.array(kept) == 0) > 0.75
    assert np.mean(kept) < 0.05


def test_a_head_that_only_calibrates_has_share_0(run: Run) -> None:
    """The slice model's logits are three times too large; the head corrects that and nothing else."""
    for seed in range(3):
        known, logits = drawn(seed)
        assert choose_mix(run, known, 3 * logits, -2 * logits + 0.5).tolist() == [0.0] * len(CLASSES)
        informed = choose_mix(run, known, 3 * logits, 3 * (2 * known.labels - 1))
        assert (informed > 0.8).all()


def test_the_share_is_the_smallest_within_one_standard_error() -> None:
    rng = np.random.default_rng(0)
    losses = np.square(SHARES - 0.6)[:, None] + rng.normal(0, 0.3, (len(SHARES), len(OWNER)))
    losses[:, 7] = np.nan
    by_patient = [[np.nansum(each[patient == OWNER]) for patient in range(PATIENTS)] for each in losses]
    best = min(by_patient, key=sum)
    wanted = None
    for share, sums in zip(SHARES, by_patient, strict=True):
        worse = [own - of_best for own, of_best in zip(sums, best, strict=True)]
        if wanted is None and np.mean(worse) <= np.std(worse, ddof=1) / np.sqrt(PATIENTS):
            wanted = share
    assert smallest_share(losses, OWNER) == wanted
    assert 0 < wanted < SHARES[np.argmin([sum(sums) for sums in by_patient])]


def test_a_class_labelled_in_one_patient_keeps_the_slice_model(run: Run) -> None:
    known, logits = drawn(0)
    known.labels[OWNER != 3, 0] = np.nan
    chosen = choose_mix(run, known, logits, 3 * (2 * np.nan_to_num(known.labels) - 1))
    assert chosen[0] == 0
    assert (chosen[1:] > 0.8).all()


def test_with_labels_of_series_the_share_is_chosen_by_series(run: Run) -> None:
    """A head that is right for every series but wrong for most slices has a large share."""
    known, logits = drawn(1)
    series = at_level(known, "series").labels[OWNER]
    known = replace(known, labels=series)
    first = (np.arange(len(OWNER)) % SLICES == 0)[:, None]
    right = np.where(first, series * 12, 0.0) - 4 * (series == 0)
    right = np.where(first | (series == 0), right, -3.0)
    of_series = replace(run, data=replace(run.data, label_level="series"))
    assert (choose_mix(of_series, known, np.full_like(logits, -1.0), right) > 0.5).all()
    assert (choose_mix(run, known, np.full_like(logits, -1.0), right) < 0.3).all()


def test_the_share_is_1_if_the_settings_say_so(run: Run) -> None:
    known, logits = drawn(0)
    with_all = replace(run, config=replace(run.config, head_share="all"))
    assert choose_mix(run, known, logits, 0 * logits).tolist() == [0.0] * len(CLASSES)
    assert choose_mix(with_all, known, logits, 0 * logits).tolist() == [1.0] * len(CLASSES)
    assert read_mix(with_all).tolist() == [1.0] * len(CLASSES)


def test_the_share_is_1_without_a_validation_set(run: Run) -> None:
    known, logits = drawn(0)
    none = Predictions(known.slices[:0], known.classes, known.labels[:0], known.probabilities[:0])
    assert choose_mix(run, none, logits[:0], logits[:0]).tolist() == [1.0] * len(CLASSES)
    assert set(json.loads((Path(run.path) / "mix.json").read_text())["shares"]) == set(CLASSES)


@pytest.mark.parametrize("share", [None, "0.5", "\x1b]0;x\x07", -0.05, 1.05, True, [1], {}])
def test_a_share_that_is_not_a_number_from_0_to_1_is_refused(run: Run, tmp_path: Path, share: object) -> None:
    copied = replace(run, path=tmp_path)
    file = tmp_path / "mix.json"
    file.write_text(json.dumps({"shares": dict.fromkeys(CLASSES, 1)}))
    assert read_mix(copied).tolist() == [1] * len(CLASSES)
    for shares in (dict.fromkeys(CLASSES, 1) | {CLASSES[0]: share}, dict.fromkeys(CLASSES[1:], 1), share):
        file.write_text(json.dumps({"shares": shares}))
        with pytest.raises(RunError, match=r"mix\.json: cannot be read .* run: train series --resume"):
            read_mix(copied)

"""This file holds the report: what it says is what the run's files say, and it needs nothing but itself."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.training.fake_cache import write_cache
from tests.training.fake_run import write_run
from training.cache import Cache, open_cache
from training.errors import RunError
from training.report import choose_slices, read_results, write_report


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(write_cache(tmp_path_factory.mktemp("cache") / "cache.zarr", patients=30, slices=6).path)


@pytest.fixture
def run(tmp_path: Path, cache: Cache) -> Path:
    write_run(tmp_path / "run", cache)
    return tmp_path / "run"


def test_shows_the_scores_of_the_run(run: Path, cache: Cache) -> None:
    text = write_report(run, cache).read_text()
    scores = read_results(run).scores["test"]
    assert f"{scores['weighted_log_loss']:.4f}" in text
    for name, of in scores["classes"].items():
        assert f"{name}</td><td>{of['positives']:,} / {of['n']:,}" in text


def test_asks_nothing_of_a_network(run: Path, cache: Cache) -> None:
    text = write_report(run, cache).read_text()
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.parametrize(
    "gone", ["split.csv", "log.csv", "predictions_test.csv", "scores_test.json", "predictions_validation.csv"]
)
def test_says_what_is_missing(run: Path, cache: Cache, gone: str) -> None:
    (run / gone).unlink()
    assert "</html>" in write_report(run, cache).read_text()


def test_bare_run_and_no_cache(run: Path) -> None:
    for file in run.iterdir():
        if file.name != "settings.json":
            file.unlink()
    text = write_report(run, None).read_text()
    assert "The run has no scores yet." in text
    assert "The run has no log yet." in text


def test_without_the_cache_says_so(run: Path) -> None:
    assert "The cache was not given." in write_report(run, None).read_text()


def test_no_run_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here"):
        write_report(tmp_path, None)


def test_damaged_scores_are_the_users_error(run: Path) -> None:
    (run / "scores_test.json").write_text("{")
    with pytest.raises(RunError, match=r"scores_test\.json: cannot be read"):
        write_report(run, None)


def test_same_run_gives_the_same_bytes(run: Path, cache: Cache) -> None:
    other = run.parent / "again" / "run"
    shutil.copytree(run, other)
    assert write_report(run, cache).read_bytes() == write_report(other, cache).read_bytes()


def test_sheet_shows_every_finding(run: Path) -> None:
    known = read_results(run).predictions["test"]
    chosen = choose_slices(known, 12)
    assert len(set(chosen)) == len(chosen) <= 12
    shown = known.labels[chosen]
    assert ((shown == 1).any(axis=0) == (known.labels == 1).any(axis=0)).all()
    assert (shown == 0).all(axis=1).any()


def test_sheet_does_not_depend_on_the_order_of_lines(run: Path) -> None:
    known = read_results(run).predictions["test"]
    order = np.random.default_rng(0).permutation(len(known))
    shuffled = type(known)(
        known.slices.iloc[order].reset_index(drop=True), known.classes, known.labels[order], known.probabilities[order]
    )
    names = known.slices["image_id"].to_numpy()
    assert list(names[choose_slices(known, 12)]) == list(names[order][choose_slices(shuffled, 12)])

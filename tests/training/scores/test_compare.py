"""Test the comparison of runs: paired draws, the same slices, and differences that exist or not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.fake_cache import write_cache
from tests.training.scores.test_evaluation import CLASSES, predictions
from training.data.cache import open_cache
from training.data.neighbours import SERIES
from training.errors import RunError
from training.run.config import TrainConfig
from training.run.runs import NewRun, create_run
from training.scores.bootstrap import bootstrap, interval
from training.scores.compare import CALIBRATED, Contestant, compare, read_contestants, to_text
from training.scores.metrics import Scorer
from training.scores.operating import choose_operating, logit, sigmoid
from training.scores.pooling import patient_groups
from training.scores.predictions import Predictions

WEIGHTS = (1.0, 2.0)
SPLIT = (np.repeat(["train", "validation", "test"], 16), (np.full(3, 0.2), np.full(3, 0.1)))


def contestant(name: str, known: Predictions, skill: float = 1.0, noise: float = 0.0) -> Contestant:
    rng = np.random.default_rng(len(name))
    logits = logit(known.probabilities) * skill + noise * rng.normal(size=known.labels.shape)
    return Contestant(name, Predictions(known.slices, CLASSES, known.labels, sigmoid(logits)), WEIGHTS)


def line(table: pd.DataFrame, score: str, name: str) -> pd.Series:
    return table[(table["score"] == score) & (table["class"] == name)].iloc[0]


def test_a_worse_run_is_clearly_worse() -> None:
    known = predictions(0, patients=80)
    table = compare([contestant("good", known), contestant("noisy", known, noise=3.0)], resamples=200)
    auc = line(table, "roc_auc", "any")
    assert auc["difference"] < 0
    assert auc["high"] < 0
    assert line(table, "weighted_log_loss", "all")["low"] > 0


def test_a_gain_in_calibration_alone_vanishes_if_both_are_calibrated() -> None:
    known = predictions(0, patients=80)
    pair = [contestant("right", known), contestant("too_sure", known, skill=3.0)]
    pair = [replace(of, calibration=choose_operating(known.labels, of.known.probabilities, CLASSES)) for of in pair]
    table = compare(pair, resamples=200)
    assert line(table, "weighted_log_loss", "all")["low"] > 0
    for name in ("all", *CLASSES):
        of = line(table, CALIBRATED, name)
        assert abs(of["difference"]) < 1e-6
    again = [pair[0].calibration.calibrate(known.probabilities), known.labels]
    losses = -(again[1] * np.log(again[0]) + (1 - again[1]) * np.log(1 - again[0]))
    assert line(table, CALIBRATED, "any")["value_a"] == pytest.approx(np.nanmean(losses[:, CLASSES.index("any")]))
    weights = np.array(WEIGHTS) * ~np.isnan(losses)
    assert line(table, CALIBRATED, "all")["value_a"] == pytest.approx(np.nansum(losses * weights) / weights.sum())
    assert CALIBRATED in to_text(table)


def test_calibrated_draws_are_those_of_the_other_scores() -> None:
    """With an identity calibration they equal the plain log losses, as do the intervals; both runs need one."""
    known = predictions(0, patients=80)
    nothing = choose_operating(known.labels, known.probabilities, CLASSES)
    nothing = replace(nothing, slopes=np.ones(2), offsets=np.zeros(2))
    pair = [contestant("a", known), contestant("noisy", known, noise=2.0)]
    table = compare([replace(of, calibration=nothing) for of in pair], resamples=120)
    for plain, name in (("weighted_log_loss", "all"), ("log_loss", "any")):
        for column in ("value_a", "value_b", "low", "high"):
            found, wanted = line(table, CALIBRATED, name)[column], line(table, plain, name)[column]
            assert found == pytest.approx(wanted, rel=1e-9)
    one = compare([replace(pair[0], calibration=nothing), pair[1]], resamples=20)
    assert CALIBRATED not in set(one["score"])


def test_a_run_equals_itself() -> None:
    known = predictions(0)
    table = compare([contestant("a", known), contestant("b", known)], resamples=50)
    assert (table[["difference", "low", "high"]].fillna(0) == 0).all().all()


def test_differences_by_rounding_alone_have_no_interval() -> None:
    """A head with share 0 for a class returns the slice model's probabilities, computed in other batches."""
    known = predictions(0, patients=80)
    table = compare([contestant("a", known), contestant("b", known, noise=1e-6)], resamples=50)
    assert (table["no_interval"] != "").all()
    assert line(table, "log_loss", "any")["no_interval"] == "0 patients differ, it needs 6"


def test_pairing_narrows_the_interval() -> None:
    known = predictions(0, patients=80)
    a, b = contestant("a", known), contestant("bb", known, noise=0.3)
    paired = line(compare([a, b], resamples=200), "roc_auc", "any")
    groups, patients = patient_groups(known)
    draws = [
        bootstrap(
            Scorer(of.known.labels, of.known.probabilities, WEIGHTS, np.full(2, 0.5), groups), patients, 200, seed
        )
        for seed, of in enumerate((a, b))
    ]
    low, high = interval(draws[1].classes["roc_auc"][:, 1] - draws[0].classes["roc_auc"][:, 1])
    assert paired["high"] - paired["low"] < (high - low) / 2


def test_order_of_slices_does_not_matter() -> None:
    known = predictions(0)
    order = np.random.default_rng(0).permutation(len(known))
    shuffled = Predictions(
        known.slices.iloc[order].reset_index(drop=True), CLASSES, known.labels[order], known.probabilities[order]
    )
    table = compare([contestant("a", known), contestant("b", shuffled)], resamples=20)
    assert table["difference"].abs().max() < 1e-12


def test_frames_of_one_file_are_distinguished() -> None:
    known = predictions(0)
    number = np.arange(len(known))
    frames = known.slices.assign(image_id=(number // 4).astype(str), z_norm=number % 4 // 2 / 2)  # two at each position
    order = np.argsort(-frames["z_norm"], kind="stable").to_numpy()
    a = contestant("a", Predictions(frames, CLASSES, known.labels, known.probabilities))
    moved = frames.iloc[order].reset_index(drop=True)
    b = contestant("b", Predictions(moved, CLASSES, known.labels[order], known.probabilities[order]))
    assert compare([a, b], resamples=20)["difference"].abs().max() < 1e-12


def test_other_slices_are_refused() -> None:
    with pytest.raises(RunError, match="the same slices"):
        compare([contestant("a", predictions(0)), contestant("b", predictions(1))])


def test_other_labels_are_refused() -> None:
    known = predictions(0)
    flipped = Predictions(known.slices, CLASSES, 1 - known.labels, known.probabilities)
    with pytest.raises(RunError, match="labels that differ"):
        compare([contestant("a", known), contestant("b", flipped)])


def test_every_pair_of_three_is_compared() -> None:
    known = predictions(0)
    table = compare([contestant(name, known, noise=0.1) for name in ("a", "bb", "ccc")], resamples=20)
    assert set(zip(table["a"], table["b"], strict=True)) == {("a", "bb"), ("a", "ccc"), ("bb", "ccc")}
    assert "ccc minus bb" in to_text(table)


def test_runs_with_the_same_name_are_named_by_their_paths(tmp_path: Path) -> None:
    cache = open_cache(write_cache(tmp_path / "cache.zarr", patients=12, slices=4).path)
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for seed, path in enumerate(paths):
        run = create_run(path, cache, NewRun(TrainConfig(size_px=32), *SPLIT, {}))
        table = cache.table[["row", "image_id", *SERIES, "z_norm", *cache.classes]]
        p = np.random.default_rng(seed).random((len(table), len(cache.classes)))
        table.join(pd.DataFrame(p, columns=[f"p_{name}" for name in cache.classes])).to_csv(
            run.path / "predictions_test.csv", index=False
        )
    table = compare(read_contestants(paths, "test"), resamples=10)
    assert set(table["a"]) == {str(paths[0])}
    assert set(table["b"]) == {str(paths[1])}
    with pytest.raises(RunError, match=r"train evaluate --run .* --split test --tta"):
        read_contestants(paths, "test_tta")

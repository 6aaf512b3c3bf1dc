"""Test the bootstrap: draws of patients, against plain loops, and the coverage of the intervals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from training.scores.bootstrap import bootstrap, difference, draw_patients, interval, intervals
from training.scores.calibration_error import calibration_interval
from training.scores.metrics import Scorer, score
from training.scores.pooling import patient_groups, pool
from training.scores.predictions import Predictions

CLASSES = ("bleed", "any")
WEIGHTS = [1.0, 2.0]
HALF = np.full(2, 0.5)


def simulate(rng: np.random.Generator, patients: int, slices: int, correlated: float = 2.0) -> tuple[np.ndarray, ...]:
    """Return labels (N, 2), probabilities (N, 2) and groups (N,); slices of a patient share findings and errors."""
    groups = np.repeat(np.arange(patients), slices)
    shared = rng.normal(0, correlated, (patients, 2))[groups]
    labels = (shared + rng.normal(0, 1, shared.shape) > 1).astype(float)
    error = rng.normal(0, correlated, (patients, 2))[groups] + rng.normal(0, 1, shared.shape)
    return labels, 1 / (1 + np.exp(-(1.5 * labels - 1 + error))), groups


def intervals_of(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, Any]:
    scorer, units = Scorer(labels, probabilities, WEIGHTS, HALF, groups), int(groups.max()) + 1
    measured = scorer.scores(np.ones((1, units), np.int64))
    return intervals(measured, bootstrap(scorer, units, resamples, seed), CLASSES)


def test_draws_have_the_sample_size_and_depend_only_on_the_seed() -> None:
    draws = np.concatenate(list(draw_patients(13, 120, seed=4)))
    assert draws.shape == (120, 13)
    assert (draws.sum(axis=1) == 13).all()
    again = np.concatenate(list(draw_patients(13, 120, seed=4)))
    other = np.concatenate(list(draw_patients(13, 120, seed=5)))
    assert (draws == again).all()
    assert (draws != other).any()


def test_draws_have_the_moments_of_a_multinomial_distribution() -> None:
    draws = np.concatenate(list(draw_patients(10, 20_000, seed=0)))
    assert draws.mean(axis=0) == pytest.approx(np.ones(10), abs=0.03)
    assert draws.var(axis=0) == pytest.approx(np.full(10, 0.9), abs=0.05)


def test_a_draw_equals_repeating_the_slices_of_patients() -> None:
    labels, probabilities, groups = simulate(np.random.default_rng(0), 12, 5)
    draws = bootstrap(Scorer(labels, probabilities, WEIGHTS, HALF, groups), 12, resamples=20, seed=1)
    for r, weights in enumerate(np.concatenate(list(draw_patients(12, 20, seed=1)))):
        lines = np.concatenate([np.flatnonzero(groups == g) for g in range(12) for _ in range(weights[g])])
        y, p = labels[lines], probabilities[lines]
        expected = score(y, p, CLASSES, WEIGHTS)
        assert draws.weighted_log_loss[r] == pytest.approx(expected["weighted_log_loss"], abs=1e-12)
        assert draws.classes["roc_auc"][r, 0] == pytest.approx(sk.roc_auc_score(y[:, 0], p[:, 0]), abs=1e-12)
        assert draws.classes["f1"][r, 1] == pytest.approx(expected["classes"]["any"]["f1"], abs=1e-12)


def test_an_interval_consists_of_the_percentiles_of_the_draws() -> None:
    draws = np.random.default_rng(0).normal(size=1001)
    assert interval(draws) == pytest.approx([np.percentile(draws, 2.5), np.percentile(draws, 97.5)])


def test_a_score_that_is_often_undefined_has_no_interval() -> None:
    draws = np.arange(100.0)
    draws[:5] = np.nan
    assert interval(draws) is not None
    draws[5] = np.nan
    assert interval(draws) is None


def test_intervals_contain_their_scores() -> None:
    labels, probabilities, groups = simulate(np.random.default_rng(2), 60, 5)
    scores = score(labels, probabilities, CLASSES, WEIGHTS)
    got = intervals_of(labels, probabilities, groups, 300)
    assert got["weighted_log_loss"][0] < scores["weighted_log_loss"] < got["weighted_log_loss"][1]
    for name in CLASSES:
        for key, (low, high) in got["classes"][name].items():
            assert low <= scores["classes"][name][key] <= high, key


def test_paired_differences_of_a_score_with_itself_are_zero() -> None:
    labels, probabilities, groups = simulate(np.random.default_rng(3), 20, 4)
    draws = bootstrap(Scorer(labels, probabilities, WEIGHTS, HALF, groups), 20, 50)
    same = difference(draws, draws)
    assert (same.weighted_log_loss == 0).all()
    assert (same.classes["roc_auc"] == 0).all()


def coverage(of_slices: bool, simulations: int = 150) -> float:
    """Return how often intervals of log loss and ROC AUC cover the truth, for slices correlated within patients."""
    labels, probabilities, _ = simulate(np.random.default_rng(99), 200_000, 4)
    truth = score(labels, probabilities, CLASSES, WEIGHTS)
    inside = []
    for seed in range(simulations):
        labels, probabilities, groups = simulate(np.random.default_rng(seed), 150, 4)
        if of_slices:
            groups = np.arange(len(labels))
        got = intervals_of(labels, probabilities, groups, 200, seed)
        for (low, high), value in (
            (got["weighted_log_loss"], truth["weighted_log_loss"]),
            (got["classes"]["any"]["roc_auc"], truth["classes"]["any"]["roc_auc"]),
        ):
            inside.append(low <= value <= high)
    return float(np.mean(inside))


def test_intervals_over_patients_cover_and_over_slices_do_not() -> None:
    # 300 intervals: the standard error of the share is 1.3 %.
    assert 0.92 <= coverage(of_slices=False) <= 0.98
    assert coverage(of_slices=True, simulations=60) < 0.85


def sharpened(rng: np.random.Generator, patients: int, sharpness: float) -> tuple[np.ndarray, ...]:
    """Return the same as `simulate`, with calibrated probabilities whose logits are multiplied by `sharpness`."""
    groups = np.repeat(np.arange(patients), 4)
    logits = rng.normal(-1, 1, (patients, 2))[groups]
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    return labels, 1 / (1 + np.exp(-sharpness * logits)), groups


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_intervals_of_the_calibration_error_cover_the_truth(sharpness: float) -> None:
    labels, probabilities, _ = sharpened(np.random.default_rng(99), 200_000, sharpness)
    truth = score(labels, probabilities, CLASSES, WEIGHTS)["classes"]
    inside = []
    for seed in range(100):
        got = intervals_of(*sharpened(np.random.default_rng(seed), 150, sharpness), 200, seed)["classes"]
        spans = {name: got[name]["calibration_error"] for name in CLASSES}
        inside += [low <= truth[name]["calibration_error"] <= high for name, (low, high) in spans.items()]
    # 200 intervals: the standard error of the share is 1.5 %. Percentiles of the draws would never cover the first.
    assert np.mean(inside) >= 0.91


def test_with_little_noise_the_interval_of_a_calibration_error_is_the_percentiles() -> None:
    measured = np.array([0.1, -0.2, 0.05])
    draws = measured + np.random.default_rng(0).normal(0, 0.001, (4000, 3))
    assert calibration_interval(measured, draws, (0.025, 0.975)) == pytest.approx(
        np.quantile(np.abs(draws).sum(axis=1), [0.025, 0.975]), abs=2e-4
    )


def test_with_noise_alone_the_interval_of_a_calibration_error_starts_at_0() -> None:
    draws = np.random.default_rng(0).normal(0, 0.01, (4000, 15))
    low, high = calibration_interval(draws[0], draws + draws[0], (0.025, 0.975))
    assert low == 0 < np.abs(draws[0]).sum() < high


def make_predictions(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> Predictions:
    slices = pd.DataFrame(
        {
            "row": np.arange(len(groups)),
            "image_id": [f"i{k}" for k in range(len(groups))],
            "patient_id": [f"p{g // 2}" for g in groups],
            "study_instance_uid": [f"t{g}" for g in groups],
            "series_instance_uid": [f"s{g}" for g in groups],
            "z_norm": 0.5,
        }
    )
    return Predictions(slices, CLASSES, labels, probabilities)


@pytest.mark.parametrize("level", ["series", "patient"])
def test_pooling_takes_the_largest_probability_and_any_label(level: str) -> None:
    rng = np.random.default_rng(0)
    labels, probabilities, groups = simulate(rng, 8, 6)
    order = rng.permutation(len(labels))
    labels[rng.random(labels.shape) < 0.2] = np.nan
    known = make_predictions(labels[order], probabilities[order], groups[order])
    pooled = pool(known, level)
    column = {"series": "series_instance_uid", "patient": "patient_id"}[level]
    assert len(pooled) == known.slices[column].nunique()
    for line, name in enumerate(pooled.slices[column]):
        mine = (known.slices[column] == name).to_numpy()
        assert (pooled.probabilities[line] == known.probabilities[mine].max(axis=0)).all()
        for k in range(2):
            y = known.labels[mine, k]
            expected = 1.0 if (y == 1).any() else np.nan if np.isnan(y).any() else 0.0
            assert pooled.labels[line, k] == pytest.approx(expected, nan_ok=True)


def test_a_series_uid_shared_by_patients_or_studies_stands_for_several_series() -> None:
    known = make_predictions(np.array([[1.0, 0], [0, 0], [0, 0]]), np.full((3, 2), 0.5), np.arange(3))
    slices = known.slices.assign(
        series_instance_uid="s", patient_id=["a", "b", "b"], study_instance_uid=["t", "t", "u"]
    )
    pooled = pool(replace(known, slices=slices), "series")
    assert pooled.labels[:, 0].tolist() == [1, 0, 0]


def test_soft_labels_are_pooled_by_the_largest() -> None:
    labels = np.array([[0.2, 0.7], [0.4, np.nan], [np.nan, np.nan], [0.4, 0.1]])
    pooled = pool(make_predictions(labels, np.full((4, 2), 0.5), np.array([0, 0, 1, 1])), "series")
    np.testing.assert_array_equal(pooled.labels, [[0.4, 0.7], [np.nan, np.nan]])


def test_groups_name_the_patients() -> None:
    known = make_predictions(*simulate(np.random.default_rng(0), 8, 2))
    groups, count = patient_groups(known)
    assert count == 4
    assert pd.Series(groups).groupby(known.slices["patient_id"]).nunique().eq(1).all()

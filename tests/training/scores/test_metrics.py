"""Test the scores against scikit-learn, known values of the competition, and the rules for undefined scores."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from training.scores.metrics import CALIBRATION_BINS, Scorer, score, score_at
from training.scores.ranking import Ranking

CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
WEIGHTS = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
PREVALENCES = [0.00409, 0.04830, 0.03525, 0.04764, 0.06303, 0.14401]


def simulate(seed: int, n: int = 400, missing: float = 0.0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 6)) < rng.random(6)).astype(float)
    probabilities = 1 / (1 + np.exp(-(2 * labels - 1 + rng.normal(0, 2, (n, 6)))))
    if ties:
        probabilities = np.round(probabilities, 1)
    labels[rng.random((n, 6)) < missing] = np.nan
    return labels, probabilities


def expected_class(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Return the scores of one class by scikit-learn, NaN if undefined."""
    known = ~np.isnan(y)
    y, p = y[known].astype(int), p[known]
    hard = p >= 0.5
    kinds = len(set(y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "log_loss": sk.log_loss(y, np.clip(p, 1e-15, 1 - 1e-15), labels=[0, 1]),
            "precision": sk.precision_score(y, hard, zero_division=np.nan),
            "recall": sk.recall_score(y, hard, zero_division=np.nan),
            "specificity": sk.recall_score(y, hard, pos_label=0, zero_division=np.nan),
            "f1": sk.f1_score(y, hard, zero_division=np.nan),
            "roc_auc": sk.roc_auc_score(y, p) if kinds == 2 else math.nan,
            "average_precision": sk.average_precision_score(y, p) if y.any() else math.nan,
            "brier": np.mean((p - y) ** 2),
            "prevalence": np.mean(y),
        }


def assert_agrees(got: dict, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        if math.isnan(value):
            assert got[name] is None, name
            assert name in got["undefined"], name
        else:
            assert got[name] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from([0.0, 0.3]), st.booleans())
def test_equals_scikit_learn(seed: int, n: int, missing: float, ties: bool) -> None:
    labels, probabilities = simulate(seed, n, missing, ties)
    labels[0, :] = 1.0
    got = score(labels, probabilities, CLASSES, WEIGHTS)
    for k, name in enumerate(CLASSES):
        assert_agrees(got["classes"][name], expected_class(labels[:, k], probabilities[:, k]))


def test_equals_scikit_learn_over_all_classes() -> None:
    labels, probabilities = simulate(1)
    got = score(labels, probabilities, CLASSES, WEIGHTS)
    hard = probabilities >= 0.5
    for average in ("micro", "macro"):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(labels.astype(int), hard, average=average)
        wanted = {"precision": precision, "recall": recall, "f1": f1}
        if average == "macro":
            wanted["roc_auc"] = sk.roc_auc_score(labels, probabilities, average="macro")
            wanted["average_precision"] = sk.average_precision_score(labels, probabilities, average="macro")
            wanted["prevalence"] = labels.mean()
        assert got[average] == pytest.approx(wanted, abs=1e-9)
    rows = [sk.log_loss(y, p, sample_weight=WEIGHTS, labels=[0, 1]) for y, p in zip(labels, probabilities, strict=True)]
    assert got["weighted_log_loss"] == pytest.approx(np.mean(rows), abs=1e-9)


def test_weighted_log_loss_with_missing_labels_is_the_weighted_mean_of_the_pairs() -> None:
    labels, probabilities = simulate(2, missing=0.4)
    known = ~np.isnan(labels)
    weights = np.broadcast_to(WEIGHTS, labels.shape)[known]
    expected = sk.log_loss(labels[known].astype(int), probabilities[known], sample_weight=weights)
    assert score(labels, probabilities, CLASSES, WEIGHTS)["weighted_log_loss"] == pytest.approx(expected, abs=1e-9)


def test_soft_labels_are_scored_by_cross_entropy_and_counted_from_a_half_on() -> None:
    rng = np.random.default_rng(5)
    labels, probabilities = rng.integers(0, 5, (200, 1)) / 4, rng.random((200, 1))
    got = score(labels, probabilities, ("a",), [1.0])["classes"]["a"]
    # A soft label y is y positive and 1 - y negative readers.
    twice, p = np.repeat([1, 0], 200), np.tile(probabilities[:, 0], 2)
    share = np.concatenate([labels[:, 0], 1 - labels[:, 0]])
    assert got["log_loss"] == pytest.approx(sk.log_loss(twice, p, sample_weight=share), abs=1e-9)
    assert got["brier"] == pytest.approx(np.mean((probabilities - labels) ** 2))
    hard = labels[:, 0] >= 0.5
    assert got["positives"] == hard.sum()
    assert got["recall"] == pytest.approx(sk.recall_score(hard, probabilities[:, 0] >= 0.5))
    assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(hard, probabilities[:, 0]))


def test_calibration_error_equals_a_loop_over_the_bins() -> None:
    labels, probabilities = simulate(3, missing=0.1)
    probabilities[:5, 0] = [0.0, 1.0, 1 / 15, 2 / 15, 1.0]
    got = score(labels, probabilities, CLASSES, WEIGHTS)
    for k, name in enumerate(CLASSES):
        known = ~np.isnan(labels[:, k])
        y, p = labels[known, k], probabilities[known, k]
        bins = np.minimum(np.floor(p * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        gaps = [abs(np.sum(p[bins == b] - y[bins == b])) for b in range(CALIBRATION_BINS)]
        assert got["classes"][name]["calibration_error"] == pytest.approx(sum(gaps) / len(y), abs=1e-12)


def test_competition_constant_prediction_of_the_prevalences() -> None:
    n = 100_000
    labels = np.zeros((n, 6))
    for k, prevalence in enumerate(PREVALENCES):
        labels[: round(prevalence * n), k] = 1
    got = score(labels, np.tile(PREVALENCES, (n, 1)), CLASSES, WEIGHTS)
    assert got["weighted_log_loss"] == pytest.approx(0.2320, abs=5e-5)


def test_competition_all_half() -> None:
    labels, _ = simulate(4)
    got = score(labels, np.full(labels.shape, 0.5), CLASSES, WEIGHTS)
    assert got["weighted_log_loss"] == pytest.approx(0.6931, abs=5e-5)


def test_competition_component_losses() -> None:
    losses = np.array([0.01551983, 0.0432483, 0.02558591, 0.0593664, 0.07052195, 0.0980101])
    got = score(np.ones((3, 6)), np.tile(np.exp(-losses), (3, 1)), CLASSES, WEIGHTS)
    assert got["weighted_log_loss"] == pytest.approx(0.0586089, abs=5e-8)
    assert [got["classes"][name]["log_loss"] for name in CLASSES] == pytest.approx(losses, abs=1e-9)


@pytest.mark.parametrize(("label", "probability"), [(1.0, 0.0), (0.0, 1.0)])
def test_loss_of_a_certain_error_is_clipped(label: float, probability: float) -> None:
    got = score(np.array([[label]]), np.array([[probability]]), ["any"], [2.0])
    assert got["weighted_log_loss"] == pytest.approx(-math.log(1e-15), rel=1e-2)


def test_a_certain_and_correct_probability_has_no_loss() -> None:
    assert score(np.array([[1.0]]), np.array([[1.0]]), ["any"], [2.0])["weighted_log_loss"] < 1e-14


def test_probability_at_the_threshold_counts_as_positive() -> None:
    got = score(np.array([[1.0], [0.0]]), np.array([[0.5], [0.4999]]), ["any"], [1.0])
    assert got["classes"]["any"]["recall"] == 1.0
    assert got["classes"]["any"]["specificity"] == 1.0


def test_each_class_has_its_own_threshold() -> None:
    labels, probabilities = simulate(5)
    thresholds = np.linspace(0.2, 0.8, 6)
    got = score_at(labels, probabilities, CLASSES, WEIGHTS, thresholds)
    for k, name in enumerate(CLASSES):
        hard = probabilities[:, k] >= thresholds[k]
        assert got["classes"][name]["f1"] == pytest.approx(sk.f1_score(labels[:, k], hard), abs=1e-9)


def test_undefined_values_are_null_with_the_reason() -> None:
    labels = np.column_stack([np.zeros(4), np.ones(4), np.full(4, np.nan)])
    got = score(labels, np.full((4, 3), 0.1), ["absent", "always", "unlabelled"], [1.0, 1.0, 1.0])
    assert got["classes"]["absent"]["undefined"].keys() == {
        "precision", "recall", "f1", "roc_auc", "average_precision",
    }  # fmt: skip
    assert got["classes"]["always"]["undefined"].keys() == {"precision", "specificity", "roc_auc"}
    assert got["classes"]["unlabelled"]["log_loss"] is None
    assert got["classes"]["unlabelled"]["n"] == 0
    assert got["macro"]["recall"] == 0.0
    assert "NaN" not in json.dumps(got, allow_nan=False)


def test_scores_of_no_slices_are_undefined() -> None:
    got = score(np.empty((0, 6)), np.empty((0, 6)), CLASSES, WEIGHTS)
    assert got["weighted_log_loss"] is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_weights_of_groups_equal_repeated_slices(seed: int, ties: bool) -> None:
    labels, probabilities = simulate(seed, 120, 0.1, ties)
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 9, len(labels))
    weights = rng.integers(0, 4, 9)
    repeated = np.repeat(np.arange(len(labels)), weights[groups])
    expected = score(labels[repeated], probabilities[repeated], CLASSES, WEIGHTS)["classes"]
    values = Scorer(labels, probabilities, WEIGHTS, np.full(6, 0.5), groups).scores(weights[None])
    for k, name in enumerate(CLASSES):
        for key, of in values.classes.items():
            want = np.nan if expected[name][key] is None else expected[name][key]
            assert of[0, k] == pytest.approx(want, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("ties", [False, True])
def test_curves_contain_the_points_of_scikit_learn(ties: bool) -> None:
    labels, probabilities = simulate(6, ties=ties)
    y, p = labels[:, 0], probabilities[:, 0]
    ranking = Ranking(y, p, np.zeros(len(y), int))
    false_rate, true_rate = ranking.roc(np.ones(1, int))
    assert sk.auc(false_rate, true_rate) == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    expected = set(zip(*(np.round(part, 9) for part in sk.roc_curve(y, p)[:2]), strict=True))
    assert expected <= set(zip(np.round(false_rate, 9), np.round(true_rate, 9), strict=True))
    recall, precision = ranking.precision_recall(np.ones(1, int))
    points = zip(*(np.round(part, 9) for part in sk.precision_recall_curve(y, p)[1::-1]), strict=True)
    assert set(zip(np.round(recall, 9), np.round(precision, 9), strict=True)) <= set(points)

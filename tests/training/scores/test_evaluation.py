"""Test the full evaluation: thresholds and calibration come only from validation, and levels are pooled."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn import metrics as sk

from training.errors import RunError
from training.scores.evaluation import assess, evaluate_predictions, log_evaluation, read_operating
from training.scores.metrics import score
from training.scores.operating import choose_operating, f1_threshold, logit, platt, sigmoid, youden_threshold
from training.scores.pooling import pool
from training.scores.predictions import Predictions

CLASSES = ("bleed", "any")
WEIGHTS = [1.0, 2.0]


def predictions(seed: int, patients: int = 40, slices: int = 6) -> Predictions:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), slices)
    labels = (rng.normal(size=(patients, 2))[groups] + rng.normal(size=(len(groups), 2)) > 0.7).astype(float)
    probabilities = sigmoid(3 * labels - 3 + rng.normal(0, 1.5, labels.shape))
    table = pd.DataFrame(
        {
            "row": np.arange(len(groups)),
            "image_id": [f"{seed}-{i}" for i in range(len(groups))],
            "patient_id": [f"p{g}" for g in groups],
            "study_instance_uid": [f"t{g}" for g in groups],
            "series_instance_uid": [f"s{g}" for g in groups],
            "z_norm": 0.5,
        }
    )
    return Predictions(table, CLASSES, labels, probabilities)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
@example(seed=3_988_564_787, ties=False)  # two thresholds are equally good
def test_youden_threshold_is_the_best_of_all(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    y = np.append((rng.random(80) < 0.3).astype(float), [0.0, 1.0])
    p = np.round(rng.random(82), 1 if ties else 9)
    false_rate, recall, thresholds = sk.roc_curve(y, p, drop_intermediate=False)
    got = youden_threshold(y, p)
    hard = p >= got
    assert (hard[y == 1].mean() - hard[y == 0].mean()) == pytest.approx((recall - false_rate).max())
    best = thresholds[np.isclose(recall - false_rate, (recall - false_rate).max())]
    assert got == pytest.approx(best[np.isfinite(best)].max())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_f1_threshold_has_the_best_expected_f1_and_equals_half_of_it(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(80), 1 if ties else 9)
    q = sigmoid(1.7 * logit(p) - 2)
    each = {threshold: 2 * q[p >= threshold].sum() / ((p >= threshold).sum() + q.sum()) for threshold in np.unique(p)}
    best = max(each.values())
    got = f1_threshold(p, q)
    assert got == max(threshold for threshold, f1 in each.items() if f1 == pytest.approx(best, abs=1e-12))
    assert q[p < got].max(initial=0) <= best / 2 + 1e-9  # Lipton et al., theorem 1
    assert q[p >= got].min() >= best / 2 - 1e-9


def test_with_few_positives_f1_threshold_beats_the_best_count_on_validation() -> None:
    def f1(y: np.ndarray, called: np.ndarray) -> float:  # called 12,000 times; scikit-learn's takes 4 ms
        return float(2 * (y * called).sum() / (y.sum() + called.sum()))

    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 1.5, (40, 300))
    labels = (rng.random(logits.shape) < sigmoid(logits)).astype(float)
    others = sigmoid(rng.normal(-3, 1.5, 20_000))
    truth = rng.random(others.shape) < others
    by_rule, by_count = [], []
    for y, p in zip(labels, sigmoid(logits), strict=True):
        chosen = choose_operating(y[:, None], p[:, None], CLASSES[:1]).f1_thresholds[0]
        counted = max(np.unique(p), key=lambda threshold: f1(y, p >= threshold))
        for rule, threshold in ((by_rule, chosen), (by_count, counted)):
            rule.append(f1(truth, others >= threshold))
    assert np.mean(by_rule) > np.mean(by_count) + 0.01


@pytest.mark.parametrize("seed", range(5))
def test_platt_is_the_maximum_of_the_likelihood(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random(500) < 0.2).astype(float)
    p = sigmoid(0.4 * (4 * y - 2) + rng.normal(0, 0.5, 500) + 1)
    positives = y.sum()
    targets = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (500 - positives + 2))

    def loss(fit: np.ndarray) -> float:
        q = sigmoid(fit[0] * logit(p) + fit[1])
        return -float(np.sum(targets * np.log(q) + (1 - targets) * np.log(1 - q)))

    assert platt(y, p) == pytest.approx(minimize(loss, [1.0, 0.0], tol=1e-12).x, abs=1e-4)


def test_platt_stays_finite_if_a_threshold_separates_the_labels() -> None:
    y = np.repeat([0.0, 1.0], 50)
    slope, offset = platt(y, np.repeat([0.0, 1.0], 50))
    assert np.isfinite([slope, offset]).all()
    assert slope > 0


def test_calibration_corrects_overconfident_probabilities() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-1, 1.5, (4000, 2))
    labels = (rng.random(truth.shape) < sigmoid(truth)).astype(float)
    sure = sigmoid(4 * truth + 2)
    operating = choose_operating(labels[:2000], sure[:2000], CLASSES)
    before = score(labels[2000:], sure[2000:], CLASSES, WEIGHTS)
    after = score(labels[2000:], operating.calibrate(sure[2000:]), CLASSES, WEIGHTS)
    for name in CLASSES:
        assert after["classes"][name]["calibration_error"] < before["classes"][name]["calibration_error"] / 3
        assert after["classes"][name]["roc_auc"] == pytest.approx(before["classes"][name]["roc_auc"])


def test_a_class_without_positives_keeps_its_probabilities_with_a_reason() -> None:
    labels = np.column_stack([np.zeros(30), np.tile([0.0, 1.0], 15)])
    operating = choose_operating(labels, np.random.default_rng(0).random((30, 2)), CLASSES)
    assert operating.thresholds[0] == operating.f1_thresholds[0] == 0.5
    assert "bleed" in operating.reasons
    assert operating.calibrate(np.array([[0.3, 0.3]]))[0, 0] == pytest.approx(0.3)


def test_test_uses_the_thresholds_and_calibration_of_validation(tmp_path: Path) -> None:
    validation, test = predictions(0), predictions(1)
    assess(tmp_path, "validation", validation, WEIGHTS)
    chosen = (tmp_path / "thresholds.json").read_bytes(), (tmp_path / "calibration.json").read_bytes()
    content = assess(tmp_path, "test", test, WEIGHTS)
    assert ((tmp_path / "thresholds.json").read_bytes(), (tmp_path / "calibration.json").read_bytes()) == chosen
    calibrated = read_operating(tmp_path)["slice"].calibrate(validation.probabilities)
    for k, name in enumerate(CLASSES):
        p = validation.probabilities[:, k]
        youden, for_f1 = youden_threshold(validation.labels[:, k], p), f1_threshold(p, calibrated[:, k])
        for key, scores, wanted in (("classes", "at_threshold", youden), ("classes_f1", "at_f1_threshold", for_f1)):
            threshold = json.loads(chosen[0])["levels"]["slice"][key][name]
            assert threshold == wanted
            at = content[scores]["classes"][name]
            assert at["f1"] == pytest.approx(sk.f1_score(test.labels[:, k], test.probabilities[:, k] >= threshold))
        half = test.probabilities[:, k] >= 0.5
        assert content["classes"][name]["recall"] == pytest.approx(sk.recall_score(test.labels[:, k], half))


def test_tta_has_its_own_thresholds(tmp_path: Path) -> None:
    assess(tmp_path, "validation", predictions(0), WEIGHTS)
    assert "at_threshold" not in assess(tmp_path, "test_tta", predictions(1), WEIGHTS)
    assess(tmp_path, "validation_tta", predictions(2), WEIGHTS)
    assert "at_threshold" in assess(tmp_path, "test_tta", predictions(1), WEIGHTS)


@pytest.mark.parametrize("which", [slice(0, 1), slice(None)])
def test_thresholds_of_other_classes_are_refused(tmp_path: Path, which: slice) -> None:
    assess(tmp_path, "validation", predictions(0), WEIGHTS)
    for name in ("thresholds", "calibration"):
        file = tmp_path / f"{name}.json"
        content = json.loads(file.read_text())
        for of in list(content["levels"].values())[which]:
            classes = of["classes"] if name == "thresholds" else of
            classes.pop(next(iter(classes)))
        file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"train evaluate --run .* --split validation"):
        assess(tmp_path, "test", predictions(1), WEIGHTS)


def test_thresholds_and_calibration_read_back_exactly(tmp_path: Path) -> None:
    assess(tmp_path, "validation", predictions(0), WEIGHTS)
    known = predictions(0)
    read = read_operating(tmp_path)["slice"]
    made = choose_operating(known.labels, known.probabilities, CLASSES)
    assert (read.thresholds == made.thresholds).all()
    assert (read.f1_thresholds == made.f1_thresholds).all()
    assert (read.slopes == made.slopes).all()
    assert (read.offsets == made.offsets).all()


def test_a_run_of_0_2_0_is_scored_without_f1_thresholds(tmp_path: Path) -> None:
    assess(tmp_path, "validation", predictions(0), WEIGHTS)
    content = json.loads((tmp_path / "thresholds.json").read_text())
    for of in content["levels"].values():
        del of["classes_f1"]
    (tmp_path / "digests.json").unlink(missing_ok=True)
    (tmp_path / "thresholds.json").write_text(json.dumps(content))
    found = assess(tmp_path, "test", predictions(1), WEIGHTS)
    assert "at_threshold" in found
    assert "at_f1_threshold" not in found


def test_damaged_thresholds_are_the_users_error(tmp_path: Path) -> None:
    assess(tmp_path, "validation", predictions(0), WEIGHTS)
    (tmp_path / "thresholds.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be read"):
        assess(tmp_path, "test", predictions(1), WEIGHTS)


def test_levels_are_the_scores_of_the_pooled_predictions() -> None:
    known = predictions(3)
    content = evaluate_predictions(known, WEIGHTS, {}, resamples=20)
    for level in ("series", "patient"):
        pooled = pool(known, level)
        expected = score(pooled.labels, pooled.probabilities, CLASSES, WEIGHTS)
        assert {key: content["levels"][level][key] for key in expected} == expected
    json.dumps(content, allow_nan=False)


def test_each_evaluation_on_test_is_logged(tmp_path: Path) -> None:
    for minute in (1, 2):
        log_evaluation(tmp_path, "test", "c0ffee", 10, datetime(2026, 1, 1, 0, minute, tzinfo=UTC))
    lines = pd.read_csv(tmp_path / "looks.csv")
    assert list(lines["time"]) == ["2026-01-01T00:01:00+00:00", "2026-01-01T00:02:00+00:00"]
    assert list(lines.columns) == ["time", "what", "commit", "slices"]


def test_one_patient_has_scores_but_no_interval() -> None:
    content = evaluate_predictions(predictions(4, patients=1, slices=30), WEIGHTS, {}, resamples=20)
    assert content["weighted_log_loss"] is not None
    assert content["intervals"]["weighted_log_loss"] is None

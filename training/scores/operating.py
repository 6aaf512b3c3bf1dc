"""Thresholds and calibration, chosen on validation and applied unchanged to test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.scores.metrics import CLIP, SOFT_THRESHOLD

RULE = "largest recall + specificity - 1 on validation (Youden's index)"
RULE_F1 = "largest expected F1 on validation, by calibrated probabilities"
NEWTON_STEPS = 100


@dataclass(frozen=True)
class Operating:
    """The thresholds and the calibration of each class.

    Attributes:
        classes: K names.
        thresholds: (K,) float64, thresholds of the predicted probabilities by RULE, used for decisions; 0.5 if
            validation has only positive or only negative labels.
        f1_thresholds: (K,) float64, the same by RULE_F1, at which F1 is reported; NaN in files of version 0.2.0.
        slopes: (K,) float64; calibrated = sigmoid(slope x logit + offset).
        offsets: (K,) float64; slope 1 and offset 0 leave probabilities unchanged.
        reasons: class -> why nothing could be chosen for it.
    """

    classes: tuple[str, ...]
    thresholds: np.ndarray
    f1_thresholds: np.ndarray
    slopes: np.ndarray
    offsets: np.ndarray
    reasons: Mapping[str, str]

    def calibrate(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities, (N, K) float64, for (N, K) predicted ones."""
        return sigmoid(logit(probabilities) * self.slopes + self.offsets)


def choose_operating(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Operating:
    """Choose thresholds and calibration on the validation slices.

    Args:
        labels: (N, K) float in [0, 1], NaN if missing.
        probabilities: (N, K) float64 in [0, 1].
        classes: K names.
    """
    thresholds, for_f1, fits, reasons = [], [], [], {}
    for k, name in enumerate(classes):
        known = ~np.isnan(labels[:, k])
        y, p = labels[known, k], probabilities[known, k]
        if not 0 < (y >= SOFT_THRESHOLD).sum() < len(y):
            thresholds.append(0.5)
            for_f1.append(0.5)
            fits.append((1.0, 0.0))
            reasons[name] = "validation has only positive or only negative labels: threshold 0.5, no calibration"
        else:
            slope, offset = platt(y, p)
            thresholds.append(youden_threshold(y, p))
            for_f1.append(f1_threshold(p, sigmoid(slope * logit(p) + offset)))
            fits.append((slope, offset))
    slopes, offsets = np.array(fits, dtype=np.float64).reshape(-1, 2).T
    return Operating(tuple(classes), np.array(thresholds), np.array(for_f1), slopes, offsets, reasons)


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold with the largest recall + specificity - 1, the highest of several.

    The index weighs false negatives and false positives as rates, regardless of prevalence, so the threshold carries
    over to a set with another prevalence. That of the largest F1 does not.

    Args:
        labels: (N,) float in [0, 1], both below and from 0.5.
        probabilities: (N,) float64 in [0, 1].

    Source: Youden, "Index for rating diagnostic tests", Cancer 3 (1950).
    """
    falling, hits, called = _candidates(labels >= SOFT_THRESHOLD, probabilities)
    positives, negatives = hits[-1], len(labels) - hits[-1]
    # Integers, because rounding errors would decide between ties.
    return float(falling[np.argmax(hits * negatives - (called - hits) * positives)])


def f1_threshold(probabilities: np.ndarray, calibrated: np.ndarray) -> float:
    """Return the threshold with the largest expected F1, the highest of several.

    If the n of N slices with the highest probabilities are called positive, the expected F1 is
    2 sum_n q / (n + sum_N q), with calibrated probabilities q. It is largest where q falls below half of this F1.
    Counts of the labels themselves would depend on chance if positives are few, since a single slice can move the best
    threshold. For a rare class the threshold is higher than Youden's, because a false positive costs as much as a false
    negative. It depends on the prevalence, so it suits sets similar to validation.

    Args:
        probabilities: (N,) float64 in [0, 1], as predicted.
        calibrated: (N,) float64 in [0, 1], calibrated probabilities of the same slices.

    Source: van Rijsbergen, "Information Retrieval", 2nd ed. (1979), chapter 7, for the measure; Lipton, Elkan,
        Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", ECML PKDD 2014, for the threshold.
    """
    falling, expected, called = _candidates(calibrated, probabilities)
    return float(falling[np.argmax(2 * expected / (called + expected[-1]))])


def _candidates(counted: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct probabilities, (n,) descending; the sum of `counted` from each upwards; and their number."""
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # ties are on the same side of any threshold
    return falling[ends], np.cumsum(counted[order])[ends], ends + 1


def platt(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Fit slope and offset of calibrated = sigmoid(slope x logit + offset) by maximum likelihood.

    The labels 1 and 0 are replaced by (P + 1) / (P + 2) and 1 / (N + 2), for P positives and N negatives, so that the
    fit exists even if a threshold separates them.

    Args:
        labels: (n,) float in [0, 1], both below and from 0.5.
        probabilities: (n,) float64 in [0, 1].

    Returns:
        Slope and offset.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999; step control from Lin, Lin, Weng, "A note
        on Platt's probabilistic outputs", Machine Learning 68 (2007).
    """
    positives = labels.sum()
    low, high = 1 / (len(labels) - positives + 2), (positives + 1) / (positives + 2)
    targets = np.where(labels == 1, high, low + labels * (high - low))
    inputs = np.column_stack([logit(probabilities), np.ones(len(labels))])
    fit = np.array([1.0, 0.0])
    loss = _loss(inputs @ fit, targets)
    for _ in range(NEWTON_STEPS):
        p = sigmoid(inputs @ fit)
        gradient = inputs.T @ (p - targets)
        hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while _loss(inputs @ (fit - step), targets) > loss and np.abs(step).max() > 1e-12:
            step /= 2
        fit = fit - step
        loss = _loss(inputs @ fit, targets)
        if np.abs(step).max() < 1e-10:
            break
    return float(fit[0]), float(fit[1])


def _loss(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(np.sum(np.logaddexp(0, logits) - targets * logits))


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)) for p clipped to [1e-15, 1 - 1e-15]."""
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def to_json(levels: Mapping[str, Operating]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of `thresholds.json` and `calibration.json`, from level -> Operating."""
    thresholds = {
        "rule": RULE,
        "rule_f1": RULE_F1,
        "levels": {
            level: {
                "classes": dict(zip(of.classes, of.thresholds.tolist(), strict=True)),
                "classes_f1": dict(zip(of.classes, of.f1_thresholds.tolist(), strict=True)),
                "undefined": dict(of.reasons),
            }
            for level, of in levels.items()
        },
    }
    calibration = {
        "method": "Platt: sigmoid(slope x logit + offset), fitted on validation",
        "levels": {
            level: {
                name: {"slope": slope, "offset": offset}
                for name, slope, offset in zip(of.classes, of.slopes.tolist(), of.offsets.tolist(), strict=True)
            }
            for level, of in levels.items()
        },
    }
    return thresholds, calibration


def from_json(thresholds: Mapping[str, Any], calibration: Mapping[str, Any]) -> dict[str, Operating]:
    """Return level -> Operating, the inverse of `to_json`.

    Raises:
        ValueError: if the levels have different classes, or a value is not a number.
        KeyError, TypeError, AttributeError: if a part is missing or has the wrong type.
    """
    levels: dict[str, Operating] = {}
    for level, of in thresholds["levels"].items():
        classes = tuple(of["classes"])
        fitted = calibration["levels"][level].keys()
        if fitted != {*classes} or any(classes != other.classes for other in levels.values()):
            raise ValueError(f"level {str(level)[:20]} has other classes than the rest")
        fits = [calibration["levels"][level][name] for name in classes]
        levels[level] = Operating(
            classes=classes,
            thresholds=np.array(list(of["classes"].values()), dtype=np.float64),
            # Version 0.2.0 did not write them.
            f1_thresholds=np.array([of.get("classes_f1", {}).get(name, np.nan) for name in classes], dtype=np.float64),
            slopes=np.array([fit["slope"] for fit in fits], dtype=np.float64),
            offsets=np.array([fit["offset"] for fit in fits], dtype=np.float64),
            reasons=of["undefined"],
        )
    return levels

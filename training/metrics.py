"""This file turns labels and probabilities into scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CLIP = 1e-15
CALIBRATION_BINS = 15

WHY_UNDEFINED = {
    "precision": "no slice was predicted positive",
    "recall": "no positive label",
    "specificity": "no negative label",
    "f1": "no positive label and none predicted",
    "roc_auc": "labels of one kind only",
    "average_precision": "no positive label",
    "weighted_log_loss": "no label",
}


@dataclass(frozen=True)
class Tally:
    """Sums over slices from which every score but the ranked ones follows; adding tallies pools their slices.

    Attributes:
        n, positives, predicted, hits: (G, K) float64; labels, positive labels, positive predictions, both.
        loss, squared_error: (G, K) float64, sums of -log likelihood (nats) and of (p - y) squared.
        gaps: (G, K, CALIBRATION_BINS) float64, sum of p - y over the slices whose p falls in the bin.
    """

    n: np.ndarray
    positives: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    loss: np.ndarray
    squared_error: np.ndarray
    gaps: np.ndarray

    def weighted(self, weights: np.ndarray) -> "Tally":
        """The tallies (R, ...) of R resamples, each taking group g weights[r, g] times; weights are (R, G)."""
        return Tally(*(np.tensordot(weights, sums, axes=1) for sums in vars(self).values()))


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each label, nats, probabilities clipped to [1e-15, 1 - 1e-15]; NaN stays NaN."""
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    loss = -np.log(np.where(labels == 1, clipped, 1 - clipped))
    return np.where(np.isnan(labels), np.nan, loss)


def tally(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, groups: np.ndarray, num_groups: int
) -> Tally:
    """Sum up the slices of each group, a patient say.

    Args:
        labels: (N, K) float, 0, 1, or NaN where there is none, which leaves the pair of slice and class out.
        probabilities: (N, K) float64 in [0, 1].
        thresholds: (K,) float64; a probability equal to it counts as positive.
        groups: (N,) int in [0, num_groups).
    """

    def by_group(values: np.ndarray) -> np.ndarray:
        columns = [np.bincount(groups, weights=column, minlength=num_groups) for column in values.T]
        return np.stack(columns, axis=1)

    known = ~np.isnan(labels)
    y = np.where(known, labels, 0.0)
    predicted = (probabilities >= thresholds) & known
    error = np.where(known, probabilities - y, 0.0)
    return Tally(
        n=by_group(known),
        positives=by_group(y),
        predicted=by_group(predicted),
        hits=by_group(predicted * y),
        loss=by_group(np.nan_to_num(log_losses(labels, probabilities))),
        squared_error=by_group(error * error),
        gaps=_gaps(probabilities, error, groups, num_groups),
    )


def _gaps(probabilities: np.ndarray, error: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    cells = groups[:, None] * CALIBRATION_BINS + bins
    size = num_groups * CALIBRATION_BINS
    columns = [np.bincount(cells[:, k], weights=error[:, k], minlength=size) for k in range(error.shape[1])]
    return np.stack(columns, axis=1).reshape(num_groups, CALIBRATION_BINS, -1).swapaxes(1, 2)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _agreement(n: np.ndarray, positives: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, positives),
        "specificity": _ratio(n - positives - predicted + hits, n - positives),
        "f1": _ratio(2 * hits, positives + predicted),
    }


def class_scores(sums: Tally) -> dict[str, np.ndarray]:
    """Scores by class, each (G, K) float64, NaN where undefined.

    `calibration_error` is the expected calibration error: the mean over slices of the gap between mean probability
    and frequency in their bin, of 15 equal bins of [0, 1].

    Source: Naeini et al., AAAI 2015 (calibration error); Brier, Mon. Weather Rev. 78 (1950).
    """
    return {
        "log_loss": _ratio(sums.loss, sums.n),
        **_agreement(sums.n, sums.positives, sums.predicted, sums.hits),
        "brier": _ratio(sums.squared_error, sums.n),
        "calibration_error": _ratio(np.abs(sums.gaps).sum(axis=-1), sums.n),
        "prevalence": _ratio(sums.positives, sums.n),
    }


def micro_scores(sums: Tally) -> dict[str, np.ndarray]:
    """Precision, recall and F1, each (G,) float64, of the pairs of slice and class pooled over the classes."""
    pooled = _agreement(*(part.sum(axis=-1) for part in (sums.n, sums.positives, sums.predicted, sums.hits)))
    return {name: pooled[name] for name in ("precision", "recall", "f1")}


def macro_scores(by_class: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Precision, recall and F1, each (G,) float64, as the plain mean over the classes where they are defined."""
    names = ("precision", "recall", "f1")
    defined = {name: ~np.isnan(by_class[name]) for name in names}
    return {name: _ratio(np.nansum(by_class[name], axis=-1), defined[name].sum(axis=-1)) for name in names}


def weighted_log_loss(sums: Tally, class_weights: np.ndarray) -> np.ndarray:
    """The competition's score, (G,) float64: log loss of the labelled pairs of slice and class, mean by class weight.

    Where every slice has every label this is the mean over slices of sum_k w_k loss_k / sum_k w_k.

    Source: RSNA Intracranial Hemorrhage Detection (Kaggle 2019), evaluation page.
    """
    return _ratio(sums.loss @ class_weights, sums.n @ class_weights)


class Ranking:
    """The order of one class's probabilities: sorted once, scored under any weights of the groups.

    Between two positives only the weight of the negatives matters, so a resample costs one gather and one running
    sum over the negatives.
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> None:
        """Sort.

        Args:
            labels: (N,) float, 0, 1 or NaN for none.
            probabilities: (N,) float64.
            groups: (N,) int.
        """
        order = np.argsort(-probabilities, kind="stable")
        order = order[~np.isnan(labels[order])]
        positive = labels[order] == 1
        falling = -probabilities[order]
        self._positive_groups = groups[order[positive]]
        self._negative_groups = groups[order[~positive]]
        at = falling[positive]
        self._before = np.searchsorted(falling[~positive], at, side="left")
        self._through = np.searchsorted(falling[~positive], at, side="right")
        self._tied_before = np.searchsorted(at, at, side="left")
        self._tied_through = np.searchsorted(at, at, side="right")

    def scores(self, weights: np.ndarray) -> tuple[float, float]:
        """ROC AUC and average precision when group g counts weights[g] times; (G,) int; NaN where undefined.

        Source: AUC as the Mann-Whitney statistic, ties by half (Hanley and McNeil, Radiology 143, 1982); average
        precision as the step-wise sum over distinct thresholds, without interpolation, as scikit-learn defines it.
        """
        positives = weights[self._positive_groups]
        true, false = self._running_sums(weights)
        total_true, total_false = int(true[-1]), int(false[-1])
        if total_true == 0:
            return np.nan, np.nan
        average_precision = float(positives @ self._precision(true, false)) / total_true
        if total_false == 0:
            return np.nan, average_precision
        above = float(positives @ (false[self._before] + false[self._through]).astype(np.float64)) / 2
        return 1 - above / (total_true * total_false), average_precision

    def roc(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rates, (M,) float64 each, from (0, 0) to (1, 1); NaN where undefined."""
        true, false = self._running_sums(weights)
        last = np.unique(self._tied_through) - 1  # one positive of each group of ties, which gives a slope
        corners = np.stack([false[self._before], false[self._through]], axis=1)[last].ravel()
        heights = np.stack([true[self._tied_before], true[self._tied_through]], axis=1)[last].ravel()
        false_rate = _ratio(np.concatenate([[0], corners, false[-1:]]), false[-1])
        return false_rate, _ratio(np.concatenate([[0], heights, true[-1:]]), true[-1])

    def precision_recall(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision, (M,) float64 each, at the probability of each positive, highest first."""
        true, false = self._running_sums(weights)
        return _ratio(true[self._tied_through], true[-1]), self._precision(true, false)

    def _running_sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _running_sum(weights[self._positive_groups]), _running_sum(weights[self._negative_groups])

    def _precision(self, true: np.ndarray, false: np.ndarray) -> np.ndarray:
        hits = true[self._tied_through]
        return np.divide(hits, hits + false[self._through], out=np.zeros(len(hits)), where=hits > 0)


def _running_sum(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    class_weights: Sequence[float],
    threshold: float = 0.5,
) -> dict[str, Any]:
    """All scores of one set of slices, ready for JSON.

    Args:
        labels: (N, K) float, 0, 1, or NaN where there is none.
        probabilities: (N, K) float64 in [0, 1].
        classes: K names.
        class_weights: K weights, from the cache.
        threshold: probability from which a slice counts as positive.

    Returns:
        `weighted_log_loss`; `classes`: name -> scores of that class, with `n` and `positives`; `micro`, `macro`;
        `threshold`. A value that is not defined is None, its reason stands beside it under `undefined`.
    """
    return score_at(labels, probabilities, classes, class_weights, np.full(len(classes), threshold))


def score_at(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    class_weights: Sequence[float],
    thresholds: np.ndarray,
) -> dict[str, Any]:
    """As `score`, with a threshold for each class, (K,) float64."""
    one_group = np.zeros(len(labels), dtype=np.int64)
    sums = tally(labels, probabilities, thresholds, one_group, 1)
    by_class = class_scores(sums)
    ranked = [
        Ranking(labels[:, k], probabilities[:, k], one_group).scores(np.ones(1, np.int64)) for k in range(len(classes))
    ]
    columns = {name: values[0] for name, values in by_class.items()}
    columns["roc_auc"], columns["average_precision"] = np.array(ranked, dtype=np.float64).reshape(-1, 2).T
    counts = {"n": sums.n[0], "positives": sums.positives[0]}
    return {
        **_json_ready({"weighted_log_loss": weighted_log_loss(sums, np.asarray(class_weights, dtype=np.float64))[0]}),
        "classes": {
            name: {
                "threshold": float(thresholds[k]),
                **{key: int(values[k]) for key, values in counts.items()},
                **_json_ready({key: values[k] for key, values in columns.items()}),
            }
            for k, name in enumerate(classes)
        },
        "micro": _json_ready({key: values[0] for key, values in micro_scores(sums).items()}),
        "macro": _json_ready({key: values[0] for key, values in macro_scores(by_class).items()}),
    }


def _json_ready(values: dict[str, Any]) -> dict[str, Any]:
    ready: dict[str, Any] = {key: None if np.isnan(value) else float(value) for key, value in values.items()}
    missing = {key: WHY_UNDEFINED.get(key, "no label") for key, value in ready.items() if value is None}
    return ready | ({"undefined": missing} if missing else {})

"""Scores of labels and probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.scores.ranking import Ranking, share

CLIP = 1e-15
CALIBRATION_BINS = 15
SOFT_THRESHOLD = 0.5  # a soft label, such as a share of readers, counts as positive from here on

MACRO = ("precision", "recall", "f1", "roc_auc", "average_precision", "prevalence")
WHY_UNDEFINED = {
    "precision": "no slice was predicted positive",
    "recall": "no positive label",
    "specificity": "no negative label",
    "f1": "no positive label and no positive prediction",
    "roc_auc": "only positive or only negative labels",
    "average_precision": "no positive label",
    "weighted_log_loss": "no label",
}


@dataclass(frozen=True)
class Tally:
    """Sums over the slices of G groups, from which all scores except the ranked ones follow; sums pool the slices.

    Attributes:
        n: (G, K) float64, number of labels.
        positives: (G, K) float64, number of positive labels.
        predicted: (G, K) float64, number of positive predictions.
        hits: (G, K) float64, number of true positives.
        loss: (G, K) float64, sum of -log likelihood (nats).
        squared_error: (G, K) float64, sum of (p - y) squared.
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
        """Return the tallies of R resamples, (R, ...), that count group g weights[r, g] times; weights are (R, G)."""
        return Tally(*(np.tensordot(weights, sums, axes=1) for sums in vars(self).values()))


@dataclass(frozen=True)
class Scores:
    """Every score of R sets of slices; NaN where undefined.

    Attributes:
        weighted_log_loss: (R,) float64.
        classes: score -> (R, K) float64.
        micro: score -> (R,) float64.
        macro: score -> (R,) float64.
        gaps: (R, K, CALIBRATION_BINS) float64, contribution of each bin to the mean of p - y; the absolute values add
            up to the calibration error.
        n: (R, K), number of labels.
        positives: (R, K), number of positive labels.
    """

    weighted_log_loss: np.ndarray
    classes: dict[str, np.ndarray]
    micro: dict[str, np.ndarray]
    macro: dict[str, np.ndarray]
    gaps: np.ndarray
    n: np.ndarray
    positives: np.ndarray


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each label (nats), with probabilities clipped to [1e-15, 1 - 1e-15]; NaN stays NaN.

    For a hard label this is the negative log likelihood, for a soft label such as readers' votes its mean over them.
    """
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    return -(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped))


def tally(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, groups: np.ndarray, num_groups: int
) -> Tally:
    """Return the sums over the slices of each group, such as a patient.

    Losses and gaps use soft labels as they are; counts treat labels of SOFT_THRESHOLD or more as positive.

    Args:
        labels: (N, K) float in [0, 1], NaN if missing; a missing label leaves out the pair of slice and class.
        probabilities: (N, K) float64 in [0, 1].
        thresholds: (K,) float64; probabilities at or above them count as positive.
        groups: (N,) int in [0, num_groups).
        num_groups: G.
    """

    def by_group(values: np.ndarray) -> np.ndarray:
        columns = [np.bincount(groups, weights=column, minlength=num_groups) for column in values.T]
        return np.stack(columns, axis=1)

    known = ~np.isnan(labels)
    soft = np.where(known, labels, 0.0)
    y = (soft >= SOFT_THRESHOLD).astype(np.float64)
    predicted = (probabilities >= thresholds) & known
    error = np.where(known, probabilities - soft, 0.0)
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


def _agreement(n: np.ndarray, positives: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "precision": share(hits, predicted),
        "recall": share(hits, positives),
        "specificity": share(n - positives - predicted + hits, n - positives),
        "f1": share(2 * hits, positives + predicted),
    }


def class_scores(sums: Tally) -> dict[str, np.ndarray]:
    """Return the scores per class, each (G, K) float64, NaN where undefined.

    `calibration_error` is the expected calibration error with 15 equal bins of [0, 1]: the gap between mean probability
    and frequency of a bin, averaged over the slices.

    Source: Naeini et al., AAAI 2015 (calibration error); Brier, Mon. Weather Rev. 78 (1950) (Brier score).
    """
    return {
        "log_loss": share(sums.loss, sums.n),
        **_agreement(sums.n, sums.positives, sums.predicted, sums.hits),
        "brier": share(sums.squared_error, sums.n),
        "calibration_error": share(np.abs(sums.gaps).sum(axis=-1), sums.n),
        "prevalence": share(sums.positives, sums.n),
    }


def micro_scores(sums: Tally) -> dict[str, np.ndarray]:
    """Return precision, recall and F1, each (G,) float64, over all pairs of slice and class."""
    pooled = _agreement(*(part.sum(axis=-1) for part in (sums.n, sums.positives, sums.predicted, sums.hits)))
    return {name: pooled[name] for name in ("precision", "recall", "f1")}


def macro_scores(by_class: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the mean of each score over the classes for which it is defined, (G,) float64."""
    names = [name for name in MACRO if name in by_class]
    defined = {name: ~np.isnan(by_class[name]) for name in names}
    return {name: share(np.nansum(by_class[name], axis=-1), defined[name].sum(axis=-1)) for name in names}


def weighted_log_loss(sums: Tally, class_weights: np.ndarray) -> np.ndarray:
    """Return the competition's score, (G,) float64: the log loss of all labels, averaged with the class weights.

    If every slice has every label, it is the mean over slices of sum_k w_k loss_k / sum_k w_k.

    Source: RSNA Intracranial Hemorrhage Detection (Kaggle 2019), evaluation page.
    """
    return share(sums.loss @ class_weights, sums.n @ class_weights)


class Scorer:
    """Labels and probabilities, prepared once to be scored many times with different weights of the groups."""

    def __init__(
        self,
        labels: np.ndarray,
        probabilities: np.ndarray,
        class_weights: Sequence[float] | np.ndarray,
        thresholds: np.ndarray,
        groups: np.ndarray,
    ) -> None:
        """Sum over the groups and sort the probabilities.

        Args:
            labels: (N, K) float in [0, 1], NaN if missing.
            probabilities: (N, K) float64 in [0, 1].
            class_weights: (K,), from the cache.
            thresholds: (K,) float64; probabilities at or above them count as positive.
            groups: (N,) int from 0; slices of a group, such as a patient, are weighted together.
        """
        num_groups = int(groups.max(initial=0)) + 1
        self._class_weights = np.asarray(class_weights, dtype=np.float64)
        self._tally = tally(labels, probabilities, thresholds, groups, num_groups)
        self._rankings = [Ranking(y, p, groups) for y, p in zip(labels.T, probabilities.T, strict=True)]

    def summed(self, weights: np.ndarray) -> Tally:
        """Return the sums of R draws, from which all scores except the ranked ones follow; weights as in `scores`."""
        return self._tally.weighted(weights.astype(np.float64))

    def scores(self, weights: np.ndarray) -> Scores:
        """Return R sets of scores; the r-th counts group g weights[r, g] times. The weights are (R, G) int."""
        sums = self.summed(weights)
        by_class = class_scores(sums)
        ranked = np.array([[ranking.scores(line) for ranking in self._rankings] for line in weights])
        by_class["roc_auc"], by_class["average_precision"] = np.moveaxis(ranked, -1, 0)
        return Scores(
            weighted_log_loss=weighted_log_loss(sums, self._class_weights),
            classes=by_class,
            micro=micro_scores(sums),
            macro=macro_scores(by_class),
            gaps=share(sums.gaps, sums.n[..., None]),
            n=sums.n,
            positives=sums.positives,
        )


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    class_weights: Sequence[float] | np.ndarray,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Return all scores of one set of slices, for JSON.

    Args:
        labels: (N, K) float in [0, 1], NaN if missing.
        probabilities: (N, K) float64 in [0, 1].
        classes: K names.
        class_weights: K weights, from the cache.
        threshold: probabilities at or above it count as positive.

    Returns:
        `weighted_log_loss`; `classes`: name -> scores of that class, with `n` and `positives`; `micro`; and `macro`.
        An undefined value is None, and the `undefined` next to it gives the reason.
    """
    return score_at(labels, probabilities, classes, class_weights, np.full(len(classes), threshold))


def score_at(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    class_weights: Sequence[float] | np.ndarray,
    thresholds: np.ndarray,
) -> dict[str, Any]:
    """Return the same as `score`, with one threshold per class, (K,) float64."""
    one_group = np.zeros(len(labels), dtype=np.int64)
    scorer = Scorer(labels, probabilities, class_weights, thresholds, one_group)
    values = scorer.scores(np.ones((1, 1), dtype=np.int64))
    by_class = {
        name: {
            "n": int(values.n[0, k]),
            "positives": int(values.positives[0, k]),
            **_json_ready({key: of[0, k] for key, of in values.classes.items()}),
        }
        for k, name in enumerate(classes)
    }
    return {
        **_json_ready({"weighted_log_loss": values.weighted_log_loss[0]}),
        "classes": by_class,
        "micro": _json_ready({key: of[0] for key, of in values.micro.items()}),
        "macro": _json_ready({key: of[0] for key, of in values.macro.items()}),
    }


def _json_ready(values: dict[str, Any]) -> dict[str, Any]:
    ready: dict[str, Any] = {key: None if np.isnan(value) else float(value) for key, value in values.items()}
    missing = {key: WHY_UNDEFINED.get(key, "no label") for key, value in ready.items() if value is None}
    return ready | ({"undefined": missing} if missing else {})

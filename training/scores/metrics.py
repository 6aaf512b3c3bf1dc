"""Turn labels and probabilities into scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.scores.ranking import Ranking, share

CLIP = 1e-15
CALIBRATION_BINS = 15
SOFT_THRESHOLD = 0.5  # from which a label between 0 and 1, a share of readers say, counts as positive

MACRO = ("precision", "recall", "f1", "roc_auc", "average_precision", "prevalence")
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


@dataclass(frozen=True)
class Scores:
    """Every score of R sets of slices; NaN where undefined.

    Attributes:
        weighted_log_loss: (R,).
        classes: score -> (R, K).
        micro, macro: score -> (R,).
        gaps: (R, K, CALIBRATION_BINS), the part of the mean of p - y that each bin has; their absolute values add up
            to the calibration error.
        n, positives: (R, K), labels and positive labels.
    """

    weighted_log_loss: np.ndarray
    classes: dict[str, np.ndarray]
    micro: dict[str, np.ndarray]
    macro: dict[str, np.ndarray]
    gaps: np.ndarray
    n: np.ndarray
    positives: np.ndarray


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Cross-entropy of each label, nats, probabilities clipped to [1e-15, 1 - 1e-15]; NaN stays NaN.

    Of a hard label it is the negative log likelihood; a soft one, readers' votes say, is a mean over the readers.
    """
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    return -(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped))


def tally(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, groups: np.ndarray, num_groups: int
) -> Tally:
    """Sum up the slices of each group, a patient say.

    Losses and gaps take a soft label as it is; what is counted takes one of SOFT_THRESHOLD or more for positive.

    Args:
        labels: (N, K) float in [0, 1], or NaN where there is none, which leaves the pair of slice and class out.
        probabilities: (N, K) float64 in [0, 1].
        thresholds: (K,) float64; a probability equal to it counts as positive.
        groups: (N,) int in [0, num_groups).
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
    """Scores by class, each (G, K) float64, NaN where undefined.

    `calibration_error` is the expected calibration error: the mean over slices of the gap between mean probability
    and frequency in their bin, of 15 equal bins of [0, 1].

    Source: Naeini et al., AAAI 2015 (calibration error); Brier, Mon. Weather Rev. 78 (1950).
    """
    return {
        "log_loss": share(sums.loss, sums.n),
        **_agreement(sums.n, sums.positives, sums.predicted, sums.hits),
        "brier": share(sums.squared_error, sums.n),
        "calibration_error": share(np.abs(sums.gaps).sum(axis=-1), sums.n),
        "prevalence": share(sums.positives, sums.n),
    }


def micro_scores(sums: Tally) -> dict[str, np.ndarray]:
    """Precision, recall and F1, each (G,) float64, of the pairs of slice and class pooled over the classes."""
    pooled = _agreement(*(part.sum(axis=-1) for part in (sums.n, sums.positives, sums.predicted, sums.hits)))
    return {name: pooled[name] for name in ("precision", "recall", "f1")}


def macro_scores(by_class: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores, each (G,) float64, as the plain mean over the classes where they are defined."""
    names = [name for name in MACRO if name in by_class]
    defined = {name: ~np.isnan(by_class[name]) for name in names}
    return {name: share(np.nansum(by_class[name], axis=-1), defined[name].sum(axis=-1)) for name in names}


def weighted_log_loss(sums: Tally, class_weights: np.ndarray) -> np.ndarray:
    """The competition's score, (G,) float64: log loss of the labelled pairs of slice and class, mean by class weight.

    Where every slice has every label this is the mean over slices of sum_k w_k loss_k / sum_k w_k.

    Source: RSNA Intracranial Hemorrhage Detection (Kaggle 2019), evaluation page.
    """
    return share(sums.loss @ class_weights, sums.n @ class_weights)


class Scorer:
    """Labels and probabilities, prepared once and then scored many times with other weights of the groups."""

    def __init__(
        self,
        labels: np.ndarray,
        probabilities: np.ndarray,
        class_weights: Sequence[float] | np.ndarray,
        thresholds: np.ndarray,
        groups: np.ndarray,
    ) -> None:
        """Sum up and sort.

        Args:
            labels: (N, K) float in [0, 1], or NaN where there is none.
            probabilities: (N, K) float64 in [0, 1].
            class_weights: (K,), from the cache.
            thresholds: (K,) float64, probability from which a slice counts as positive.
            groups: (N,) int from 0 on: what is weighted together, a patient say.
        """
        num_groups = int(groups.max(initial=0)) + 1
        self._class_weights = np.asarray(class_weights, dtype=np.float64)
        self._tally = tally(labels, probabilities, thresholds, groups, num_groups)
        self._rankings = [Ranking(y, p, groups) for y, p in zip(labels.T, probabilities.T, strict=True)]

    def summed(self, weights: np.ndarray) -> Tally:
        """Return the sums of R draws, from which all scores but the ranked ones follow at once; as in `scores`."""
        return self._tally.weighted(weights.astype(np.float64))

    def scores(self, weights: np.ndarray) -> Scores:
        """Score R times, the r-th time with group g counted weights[r, g] times; (R, G) int."""
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
    """All scores of one set of slices, ready for JSON.

    Args:
        labels: (N, K) float in [0, 1], or NaN where there is none.
        probabilities: (N, K) float64 in [0, 1].
        classes: K names.
        class_weights: K weights, from the cache.
        threshold: probability from which a slice counts as positive.

    Returns:
        `weighted_log_loss`; `classes`: name -> scores of that class, with `n` and `positives`; `micro`, `macro`.
        A value that is not defined is None, and its reason stands beside it under `undefined`.
    """
    return score_at(labels, probabilities, classes, class_weights, np.full(len(classes), threshold))


def score_at(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    class_weights: Sequence[float] | np.ndarray,
    thresholds: np.ndarray,
) -> dict[str, Any]:
    """As `score`, with a threshold for each class, (K,) float64."""
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

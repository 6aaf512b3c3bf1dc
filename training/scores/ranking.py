"""ROC AUC, average precision and their curves for one class: sorted once, scored with any weights of the patients."""

import numpy as np


class Ranking:
    """The sorted probabilities of one class, to be scored with any weights of the groups.

    Between two positives only the total weight of the negatives matters, so a resample costs one gather and one
    running sum over the negatives.
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> None:
        """Sort the labelled slices by probability.

        Args:
            labels: (N,) float in [0, 1], positive from 0.5, NaN if missing.
            probabilities: (N,) float64.
            groups: (N,) int from 0, such as the patient of each slice.
        """
        order = np.argsort(-probabilities, kind="stable")
        order = order[~np.isnan(labels[order])]
        positive = labels[order] >= 0.5
        falling = -probabilities[order]
        self._positive_groups = groups[order[positive]]
        self._negative_groups = groups[order[~positive]]
        at = falling[positive]
        self._before = np.searchsorted(falling[~positive], at, side="left")
        self._through = np.searchsorted(falling[~positive], at, side="right")
        self._tied_before = np.searchsorted(at, at, side="left")
        self._tied_through = np.searchsorted(at, at, side="right")

    def scores(self, weights: np.ndarray) -> tuple[float, float]:
        """Return ROC AUC and average precision, NaN if undefined; group g counts weights[g] times, (G,) int.

        Source: AUC as the Mann-Whitney statistic, in which ties count half (Hanley and McNeil, Radiology 143, 1982);
            average precision as the sum over distinct thresholds, without interpolation, as in scikit-learn.
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
        """Return false and true positive rates, each (M,) float64, from (0, 0) to (1, 1); NaN if undefined."""
        true, false = self._running_sums(weights)
        last = np.unique(self._tied_through) - 1  # one positive per group of ties, which form a sloped segment
        corners = np.stack([false[self._before], false[self._through]], axis=1)[last].ravel()
        heights = np.stack([true[self._tied_before], true[self._tied_through]], axis=1)[last].ravel()
        false_rate = share(np.concatenate([[0], corners, false[-1:]]), false[-1])
        return false_rate, share(np.concatenate([[0], heights, true[-1:]]), true[-1])

    def precision_recall(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return recall and precision, each (M,) float64, at the probability of each positive, highest first."""
        true, false = self._running_sums(weights)
        return share(true[self._tied_through], true[-1]), self._precision(true, false)

    def _running_sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _running_sum(weights[self._positive_groups]), _running_sum(weights[self._negative_groups])

    def _precision(self, true: np.ndarray, false: np.ndarray) -> np.ndarray:
        hits = true[self._tied_through]
        return np.divide(hits, hits + false[self._through], out=np.zeros(len(hits)), where=hits > 0)


def _running_sum(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN where `whole` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)

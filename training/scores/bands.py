"""Intervals of ROC, precision-recall and reliability curves, by bootstrap over patients."""

from dataclasses import dataclass

import numpy as np

from training.scores.bootstrap import MAX_UNDEFINED, MIN_PATIENTS, TAILS, draw_patients
from training.scores.metrics import CALIBRATION_BINS
from training.scores.ranking import Ranking, share

CURVE_RESAMPLES = 200
GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Band:
    """The pointwise 95 % interval of a curve on GRID; each (101,) float64, NaN with too few patients."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Reliability:
    """The share of slices with the finding, by predicted probability; each (bins,) float64, NaN for an empty bin.

    Attributes:
        predicted: mean probability.
        observed: mean label.
        low: lower end of its 95 % interval.
        high: upper end.
        count: number of labelled slices, 0 for an empty bin.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray


def roc_band(ranking: Ranking, num_patients: int, seed: int = 0) -> Band:
    """Return the interval of the true positive rate at the false positive rates of GRID."""
    return _band([np.interp(GRID, *ranking.roc(weights)) for weights in _draws(num_patients, seed)])


def precision_recall_band(ranking: Ranking, num_patients: int, seed: int = 0) -> Band:
    """Return the interval of the precision at the recalls of GRID, each at the highest threshold that reaches it."""
    curves = []
    for weights in _draws(num_patients, seed):
        recall, precision = ranking.precision_recall(weights)
        if np.isnan(recall).any():  # a draw without a positive has no curve
            curves.append(np.full(len(GRID), np.nan))
            continue
        at = np.searchsorted(recall, GRID)
        curves.append(np.append(precision, np.nan)[np.minimum(at, len(precision))])
    return _band(curves)


def _draws(num_patients: int, seed: int) -> np.ndarray:
    """Return draws of the patients, (R, P) int64; R is 0 with fewer than MIN_PATIENTS patients."""
    if num_patients < MIN_PATIENTS:
        return np.empty((0, num_patients), np.int64)
    return np.concatenate(list(draw_patients(num_patients, CURVE_RESAMPLES, seed)))


def _band(curves: list[np.ndarray]) -> Band:
    return Band(*_tails(np.array(curves).reshape(len(curves), len(GRID))))


def _tails(draws: np.ndarray) -> np.ndarray:
    """Return the two tails of (R, M) draws, (2, M) float64; NaN where more than MAX_UNDEFINED of them are undefined."""
    low_high = np.full((2, draws.shape[1]), np.nan)
    some = np.isnan(draws).mean(axis=0) <= MAX_UNDEFINED if len(draws) else np.zeros(draws.shape[1], bool)
    if some.any():
        low_high[:, some] = np.nanquantile(draws[:, some], TAILS, axis=0)
    return low_high


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, num_patients: int, seed: int = 0
) -> Reliability:
    """Return the reliability of one class in the bins of the calibration error.

    Args:
        labels: (N,) float in [0, 1], NaN if missing.
        probabilities: (N,) float64 in [0, 1].
        groups: (N,) int in [0, num_patients), the patient of each slice.
        num_patients: P.
        seed: seed of the draws.
    """
    known = ~np.isnan(labels)
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    cells = (groups * CALIBRATION_BINS + bins)[known]

    def by_patient(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(cells, weights=values, minlength=num_patients * CALIBRATION_BINS)
        return sums.reshape(num_patients, CALIBRATION_BINS)

    count, positive = by_patient(np.ones(known.sum())), by_patient(labels[known])
    weights = _draws(num_patients, seed)
    low, high = _tails(share(weights @ positive, weights @ count))
    return Reliability(
        predicted=share(by_patient(probabilities[known]).sum(axis=0), count.sum(axis=0)),
        observed=share(positive.sum(axis=0), count.sum(axis=0)),
        low=low,
        high=high,
        count=count.sum(axis=0),
    )

"""Estimate how far a calibration error may be off, to which chance alone adds."""

import numpy as np

SCALES = 33  # between them the quantile is as good as straight


def calibration_interval(measured: np.ndarray, draws: np.ndarray, tails: tuple[float, float]) -> list[float]:
    """Return the interval of a calibration error.

    The absolute value of a gap that is only noise is not 0, so the measured error lies above the true one, and its
    draws lie higher still: for a well calibrated model their percentiles never hold the truth. So the lower end is the
    smallest error that would often show as much as was measured: gaps in the measured ones' proportions, smaller,
    with the noise of the draws; 0 where noise alone is enough. The upper end is the draws' percentile less their bias.

    Args:
        measured: (B,) float64, `metrics.Scores.gaps` of one class.
        draws: (R, B) float64, the same of draws with replacement.
        tails: the two probabilities, 0.025 and 0.975 say.

    Source: Carpenter, Test inversion bootstrap confidence intervals, J. R. Stat. Soc. B 61 (1999), for the lower end;
    Roelofs et al., Mitigating bias in calibration error estimation, AISTATS 2022, on the bias.
    """
    error, drawn = np.abs(measured).sum(), np.abs(draws).sum(axis=-1)
    scales = np.linspace(0, 1, SCALES)
    shown = np.abs(scales[:, None, None] * measured + (draws - measured)).sum(axis=-1)
    largest = np.maximum.accumulate(np.quantile(shown, tails[1], axis=1))
    low = np.interp(error, largest, scales * error)
    high = np.quantile(drawn, tails[1]) - (drawn.mean() - error)
    return [float(low), float(high)]

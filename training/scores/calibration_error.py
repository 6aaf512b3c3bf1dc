"""The interval of a calibration error, which chance alone makes larger."""

import numpy as np

SCALES = 33  # between them the quantile is nearly linear


def calibration_interval(measured: np.ndarray, draws: np.ndarray, tails: tuple[float, float]) -> list[float]:
    """Return the interval of a calibration error.

    The absolute value of a gap that is only noise is not 0, so the measured error is biased upwards, and that of the
    draws even more: for a well calibrated model, their percentiles never cover the true error. The lower end is
    therefore found by test inversion: it is the smallest error whose upper percentile reaches the measured error, with
    gaps proportional to the measured ones plus the noise of the draws, or 0 if the noise alone suffices. The upper end
    is the percentile of the draws minus their bias.

    Args:
        measured: (B,) float64, `metrics.Scores.gaps` of one class.
        draws: (R, B) float64, the same for bootstrap draws.
        tails: probabilities of the two ends, such as 0.025 and 0.975.

    Source: Carpenter, Test inversion bootstrap confidence intervals, J. R. Stat. Soc. B 61 (1999), for the lower end;
        Roelofs et al., Mitigating bias in calibration error estimation, AISTATS 2022, for the bias.
    """
    error, drawn = np.abs(measured).sum(), np.abs(draws).sum(axis=-1)
    scales = np.linspace(0, 1, SCALES)
    shown = np.abs(scales[:, None, None] * measured + (draws - measured)).sum(axis=-1)
    largest = np.maximum.accumulate(np.quantile(shown, tails[1], axis=1))
    low = np.interp(error, largest, scales * error)
    high = np.quantile(drawn, tails[1]) - (drawn.mean() - error)
    return [float(low), float(high)]

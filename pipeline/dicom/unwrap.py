"""Repair stored values that are known to be wrong, where the catalog asks for it."""

import numpy as np

# HU that 12 bits hold with CT's usual intercept of -1024: -1024 to 3071.
_WRAP = 4096
_FIRST_SURELY_NEGATIVE = 3072
_LAST_SURELY_POSITIVE = 2047
# Around air and padding lies air; around dense bone and metal lies at least fat (-100 HU).
_AIR_BELOW = -500


def unwrap_12_bits(stored: np.ndarray, intercept: int) -> np.ndarray:
    """Undo the wrap modulo 4096 of values that were HU before they were stored in 12 unsigned bits.

    With an intercept of 0, a stored s stands for s or for s - 4096. Up to 2047 it is s; from 3072 on it is s - 4096,
    air down to -1024. Between them both exist: dense bone and metal of 2048 to 3071, and air, noise and padding of
    -2048 to -1025. There the certain pixels around decide: it is air where most of them are. A thin wire in air is
    therefore lost.

    Args:
        stored: (H, W) uint16, 0 to 4095.
        intercept: 0 or 1, HU = unwrapped + intercept.

    Returns:
        (H, W) int16, -2048 to 3071.

    Source: RSNA 2019 holds 123 such files (unsigned, 12 bits, intercept 0 or 1). The fix that circulates for them
    adds 1000, takes 4096 off whatever reaches that, and subtracts 1000: air at -1024 comes out as +3072.
    """
    values = stored.astype(np.int16)
    values[values >= _FIRST_SURELY_NEGATIVE - intercept] -= _WRAP
    doubtful = values > _LAST_SURELY_POSITIVE
    if doubtful.any():
        values[doubtful & _is_in_air(values, ~doubtful)] -= _WRAP
    return values


def _is_in_air(values: np.ndarray, certain: np.ndarray) -> np.ndarray:
    """Tell for every pixel whether air is ahead among the certain pixels around it.

    Source: squares of 3, 7, 15, ... pixels; the smallest one in which tissue and air are not even decides.
    """
    votes = np.where(certain, np.where(values < _AIR_BELOW, 1, -1), 0)
    sums = np.pad(votes.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    lead = np.zeros(votes.shape, int)
    radius = 1
    while (lead == 0).any() and radius < 2 * max(votes.shape):
        (top, bottom), (left, right) = (_reach(length, radius) for length in votes.shape)
        square = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
        lead = np.where(lead == 0, square, lead)
        radius = 2 * radius + 1
    return lead >= 0


def _reach(length: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for every place the first one within the radius, and the one after the last."""
    places = np.arange(length)
    return np.maximum(places - radius, 0), np.minimum(places + radius + 1, length)

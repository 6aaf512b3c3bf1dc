"""Repair a known error in stored values, if the catalog requests it."""

import numpy as np

# The number of HU that 12 bits can hold; with CT's usual intercept, -1024 to 3071.
_WRAP = 4096
_FIRST_SURELY_NEGATIVE = 3072
_LAST_SURELY_POSITIVE = 2047
# HU. Air and padding are surrounded by air; dense bone and metal by fat (-100 HU) or denser tissue.
_AIR_BELOW = -500


def unwrap_12_bits(stored: np.ndarray, intercept: int) -> np.ndarray:
    """Undo the wrap of HU that were stored modulo 4096 in 12 unsigned bits.

    With an intercept of 0, a stored value s means either s or s - 4096. Up to 2047 it is s, and from 3072 it is
    s - 4096, -1024 or above. In between, both occur: dense bone and metal (2048 to 3071), and air, noise and padding
    (-2048 to -1025). Such a pixel is air if at least half of the unambiguous pixels around it are air. A thin wire in
    air is therefore lost.

    Args:
        stored: (H, W) uint16, 0 to 4095.
        intercept: 0 or 1, HU = unwrapped + intercept.

    Returns:
        (H, W) int16, -2048 to 3071.

    Source: RSNA 2019 has 123 such files (unsigned, 12 bits, intercept 0 or 1). The usual fix adds 1000, subtracts 4096
    from values of 4096 or more, and subtracts 1000, which turns air at -1024 into +3072.
    """
    values = stored.astype(np.int16)
    values[values >= _FIRST_SURELY_NEGATIVE - intercept] -= _WRAP
    doubtful = values > _LAST_SURELY_POSITIVE
    if doubtful.any():
        values[doubtful & _is_in_air(values, ~doubtful)] -= _WRAP
    return values


def _is_in_air(values: np.ndarray, certain: np.ndarray) -> np.ndarray:
    """Return for each pixel whether at least half of the certain pixels around it are air, (H, W) bool.

    They are counted in squares of 3, 7, 15, ... pixels; the smallest square without a tie decides.
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
    """Return for each index the first one within the radius, and the one after the last, (length,) int each."""
    places = np.arange(length)
    return np.maximum(places - radius, 0), np.minimum(places + radius + 1, length)

"""This file repairs stored values that are known to be wrong, where the catalog asks for it."""

import numpy as np

# HU that 12 bits hold with CT's usual intercept of -1024: -1024 to 3071.
_WRAP = 4096
_FIRST_SURELY_NEGATIVE = 3072
_LAST_SURELY_POSITIVE = 2047
# Around air and padding lies air; around dense bone and metal lies at least fat (-100 HU).
_AIR_BELOW = -500


def unwrap_12_bits(stored: np.ndarray) -> np.ndarray:
    """Undo the wrap modulo 4096 of values that were HU before they were stored in 12 unsigned bits.

    A stored s stands for s or for s - 4096. Up to 2047 it is s, and from 3072 on it is s - 4096, air down to -1024.
    Between them both exist: dense bone and metal of 2048 to 3071, and air, noise and padding of -2048 to -1025. There
    the nearest certain pixels to the left, right, above and below decide: air if most of them are. A pixel without
    any, as in a margin that is all padding, is air.

    Args:
        stored: (H, W) uint16, 0 to 4095.

    Returns:
        (H, W) int16, -2048 to 3071.

    Source: RSNA 2019 holds 123 such files (unsigned, 12 bits, intercept 0 or 1). The fix that circulates for them
    adds 1000, takes 4096 off whatever reaches that, and subtracts 1000: air at -1024 comes out as +3072.
    """
    values = stored.astype(np.int16)
    values[values >= _FIRST_SURELY_NEGATIVE] -= _WRAP
    doubtful = values > _LAST_SURELY_POSITIVE
    if doubtful.any():
        values[doubtful & _is_in_air(values, ~doubtful)] -= _WRAP
    return values


def _is_in_air(values: np.ndarray, certain: np.ndarray) -> np.ndarray:
    """Tell for every pixel whether at least half of its nearest certain pixels, one a direction, are air."""
    votes = np.where(certain, np.where(values < _AIR_BELOW, 1, -1), 0).astype(np.int8)
    ballot = sum(
        _carry(votes[::step_y, ::step_x], axis)[::step_y, ::step_x]
        for step_y, step_x, axis in ((1, 1, 0), (-1, 1, 0), (1, 1, 1), (1, -1, 1))
    )
    return np.asarray(ballot) >= 0


def _carry(votes: np.ndarray, axis: int) -> np.ndarray:
    """Replace every 0 by the last value before it along an axis, if there is one."""
    shape = [1, 1]
    shape[axis] = -1
    index = np.where(votes != 0, np.arange(votes.shape[axis]).reshape(shape), 0)
    return np.take_along_axis(votes, np.maximum.accumulate(index, axis=axis), axis=axis)

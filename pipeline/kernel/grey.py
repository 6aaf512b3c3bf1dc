"""Compute the grey level of each stored value, once for all slices with the same slope and intercept."""

from functools import lru_cache

import numpy as np

from pipeline.kernel.passes import fill_band
from pipeline.kernel.plain import grey_levels
from pipeline.planning.catalog import Window

_STORED_VALUES = 1 << 16

# A plain tuple: numba's disk cache would pickle the class of a named tuple, and fail to load it after a rename.
Grey = tuple[np.ndarray, np.ndarray, np.uint16, np.uint16, np.uint16]


@lru_cache(maxsize=64)
def grey_of(
    slope: float, intercept: float, padding: tuple[int, int] | None, signed: bool, windows: tuple[Window, ...]
) -> Grey:
    """Return the grey levels of all stored values; arguments as for `plain.grey_levels`.

    Returns:
        table: (C, 65536) uint8, indexed by the bit pattern of the stored value.
        factors: (C, 4) uint16 for `lanes.scale`, which then gives the same grey levels; (0, 4) if it cannot.
        flip: a bit pattern XOR this is in the order of the values.
        first: bit pattern of the lowest stored value that is not black in all windows.
        reach: difference between the highest such value and the lowest.
    """
    bits = np.arange(_STORED_VALUES, dtype=np.uint16)
    stored = bits.view(np.int16) if signed else bits
    table = grey_levels(stored, slope, intercept, padding, windows)
    lit = stored[table.any(axis=0)].astype(int)
    first, last = (lit.min(), lit.max()) if lit.size else (0, 0)
    flip = np.uint16(_STORED_VALUES // 2 if signed else 0)
    rest = flip, np.uint16(first % _STORED_VALUES), np.uint16(last - first)
    factors = np.array([_factors(window, slope, intercept, int(flip)) for window in windows], np.uint16)
    scaled = np.empty((1, *table.shape), np.uint8)
    fill_band(bits[None], (table, factors, *rest), 0, _STORED_VALUES, scaled)
    return table, factors if np.array_equal(scaled[0], table) else factors[:0], *rest


def _factors(window: Window, slope: float, intercept: float, flip: int) -> tuple[int, int, int, int]:
    """Return the first value and the reach of a window, and two factors whose product scales the reach to 255 x 2**23.

    They are exact if both ends of the window are stored values. Otherwise the grey levels may be wrong, so the caller
    checks them.
    """
    first = round((window.level_hu - window.width_hu / 2 - intercept) / slope) + flip
    reach = min(max(round(window.width_hu / slope), 1), _STORED_VALUES - 1)
    up = 1 << 16 - reach.bit_length()
    return min(max(first, 0), _STORED_VALUES - 1), reach, up, -(-(255 << 23) // (reach * up))

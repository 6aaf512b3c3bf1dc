"""Render a slice in plain NumPy: the specification of the compiled passes, and a slow replacement for them.

A test requires that both give the same bytes. A build uses this one if the compiled passes are not available.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipeline.planning.catalog import Window

FRACTION_BITS = 22  # as in Pillow: 32 bits minus 8 for the grey level and 2 of headroom


def render(
    stored: np.ndarray,
    slope: float,
    intercept: float,
    padding: tuple[int, int] | None,
    windows: tuple[Window, ...],
    images: Sequence[np.ndarray],
    sums: Sequence[np.ndarray],
) -> None:
    """Window and resize one slice to one or more sizes; arguments as for `pipeline.kernel.render.render`."""
    levels = grey_levels(stored, slope, intercept, padding, windows)
    for image, total in zip(images, sums, strict=True):
        image[:] = resize(levels, image.shape[-1])
        wide = image.astype(np.uint64)
        total[:, 0], total[:, 1] = wide.sum(axis=(1, 2)), (wide * wide).sum(axis=(1, 2))


def grey_levels(
    stored: np.ndarray, slope: float, intercept: float, padding: tuple[int, int] | None, windows: tuple[Window, ...]
) -> np.ndarray:
    """Window stored values of any shape.

    Args:
        stored: (...) int16 or uint16.
        slope, intercept: HU = stored x slope + intercept, in float64 without rounding.
        padding: inclusive range of stored values that are not tissue, which become 0; or None.
        windows: the C windows.

    Returns:
        (C, ...) uint8, floor(255 x + 0.5) with x = clip((HU - (level - width/2)) / width, 0, 1).
    """
    hu = stored * np.float64(slope) + intercept
    levels = np.empty((len(windows), *stored.shape), np.uint8)
    for grey, window in zip(levels, windows, strict=True):
        x = np.clip((hu - (window.level_hu - window.width_hu / 2)) / window.width_hu, 0, 1)
        grey[:] = np.floor(255 * x + 0.5)
    if padding is not None:
        levels[:, (stored >= padding[0]) & (stored <= padding[1])] = 0
    return levels


def resize(levels: np.ndarray, size_px: int) -> np.ndarray:
    """Resize (C, H, W) uint8 to (C, S, S) uint8: first horizontally, rounded to whole grey levels, then vertically.

    Source: Pillow, `Image.resize((S, S), BILINEAR)`, `src/libImaging/Resample.c`.
    """
    across = _resize_rows(levels, size_px)
    return np.ascontiguousarray(_resize_rows(across.swapaxes(1, 2), size_px).swapaxes(1, 2))


def _resize_rows(levels: np.ndarray, size_px: int) -> np.ndarray:
    """Resize (C, H, W) uint8 to (C, H, S) uint8; each pixel is the rounded sum of its weighted taps."""
    start, weight = taps(levels.shape[2], size_px)
    total = np.full((*levels.shape[:2], size_px), 1 << FRACTION_BITS - 1, np.int64)  # one half, for rounding
    for tap in range(weight.shape[1]):
        total += levels[:, :, start + tap] * weight[:, tap].astype(np.int64)
    return np.clip(total >> FRACTION_BITS, 0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def taps(length: int, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of a triangle filter, widened by the scale for downsizing, from `length` to `size_px` pixels.

    Returns:
        (S,) int64, the first input pixel of each output pixel; and (S, K) int32, the weights of that pixel and the next
        K - 1. They sum to 2**22 except for rounding; some are 0.

    Source: Pillow, `src/libImaging/Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`.
    """
    scale = length / size_px
    support = max(scale, 1.0)
    centre = (np.arange(size_px) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.int64), length)
    num_taps = int((stop - first).max())
    start = np.minimum(first, length - num_taps)
    position = start[:, None] + np.arange(num_taps)
    distance = np.abs((position - centre[:, None] + 0.5) * (1 / support))
    weight = np.where((position >= first[:, None]) & (position < stop[:, None]), np.maximum(1 - distance, 0), 0)
    weight /= np.cumsum(weight, axis=1)[:, -1:]  # unlike sum, cumsum adds in order, as Pillow does
    return start, np.floor(weight * (1 << FRACTION_BITS) + 0.5).astype(np.int32)

"""Render a slice with the compiled passes: window stored values, and resize them to each size.

The arithmetic of resizing is Pillow's: a horizontal pass, rounded to uint8, then a vertical pass, with integer weights
of 22 fractional bits. Only integers are added, so all CPUs give the same pixels and digests.
"""

import threading
from collections.abc import Sequence

import numpy as np

from pipeline.kernel.grey import grey_of
from pipeline.kernel.lanes import LANES, QUAD, zeros
from pipeline.kernel.passes import BAND, horizontal, vertical
from pipeline.kernel.taps import columns, rows
from pipeline.planning.catalog import MAX_WINDOWS, Window

_Scratch = tuple[np.ndarray, np.ndarray, np.ndarray]

_threads = threading.local()  # the compiled passes release the GIL, so each thread needs its own scratch memory


def render(
    stored: np.ndarray,
    slope: float,
    intercept: float,
    padding: tuple[int, int] | None,
    windows: tuple[Window, ...],
    images: Sequence[np.ndarray],
    sums: Sequence[np.ndarray],
) -> None:
    """Window and resize one slice to one or more sizes.

    Args:
        stored: (H, W) int16 or uint16 stored values, C order; may be read-only.
        slope, intercept: HU = stored x slope + intercept, without rounding.
        padding: inclusive range of stored values that are not tissue, which become 0; or None.
        windows: the C windows, 1 to `catalog.MAX_WINDOWS`.
        images: output, one (C, S, S) uint8 array for each size S, C order.
        sums: output, one (C, 2) uint64 array for each size, C order: sum and sum of squares of the grey levels in each
            channel.

    Raises:
        ValueError: the shapes of images or sums do not fit the windows; nothing was written.

    Source: equals Pillow's `Image.resize((S, S), BILINEAR)`, horizontal before vertical pass, of each channel of
        `plain.grey_levels`. For some frames that are not square, Pillow 13 starts with the vertical pass, which differs
        by at most 1 grey level.
    """
    _check_shapes(len(windows), images, sums)
    height, width = stored.shape
    sizes_px = tuple(image.shape[1] for image in images)
    grey = grey_of(slope, intercept, padding, stored.dtype.kind == "i", windows)
    groups, sizes, margin = columns(width, sizes_px)
    scratch = _scratch(height, width + 2 * margin, len(windows), sizes_px)
    horizontal(stored.view(np.uint16), grey, groups, sizes, scratch)
    for i, (image, total) in enumerate(zip(images, sums, strict=True)):
        vertical(scratch, i, sizes[0][i], rows(height, sizes_px[i]), image, total)


def _check_shapes(num_windows: int, images: Sequence[np.ndarray], sums: Sequence[np.ndarray]) -> None:
    """Raise a ValueError for a wrong shape, which would corrupt memory as the compiled passes check no bounds."""
    if not 1 <= num_windows <= MAX_WINDOWS:
        raise ValueError(f"1 to {MAX_WINDOWS} windows, not {num_windows}")
    for image, total in zip(images, sums, strict=True):
        size_px = image.shape[-1]
        if image.shape != (num_windows, size_px, size_px) or total.shape != (num_windows, 2):
            raise ValueError(f"image {image.shape} and sums {total.shape} for {num_windows} windows")


def _scratch(height: int, width: int, num_windows: int, sizes_px: tuple[int, ...]) -> _Scratch:
    """Return this thread's scratch memory, reused for equal shapes as new memory costs more in page faults than a pass.

    Returns:
        band: (BAND, C, width) uint8, the grey levels of a band of rows, with margins.
        quads: (rows / 4, C, columns, 4) uint8, the slice after the horizontal pass, groups of four rows interleaved.
        spans: (sizes, bands, 2) int64, the range of groups of `quads` in each band that are not black.
    """
    shape = (height, width, num_windows, sizes_px)
    if getattr(_threads, "shape", None) != shape:
        num_bands = -(-height // BAND)
        num_groups = sum(-(-size_px // LANES) for size_px in sizes_px)
        _threads.scratch = (
            zeros((BAND, num_windows, width)),
            zeros((num_bands * BAND // QUAD, num_windows, num_groups * LANES, QUAD)),
            np.empty((len(sizes_px), num_bands, 2), np.int64),
        )
        _threads.shape = shape
    return _threads.scratch

"""Render a slice: stored values -> windows -> a resized uint8 image of each size, and its sums.

The resize is Pillow's arithmetic: a horizontal pass, rounded to uint8, then a vertical pass, each with integer weights
of 22 fractional bits. Only integers are added, so every CPU gives the same pixels and the same digest.
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

_threads = threading.local()  # the compiled passes release the GIL: working memory must not be shared


def render(
    stored: np.ndarray,
    slope: float,
    intercept: float,
    padding: tuple[int, int] | None,
    windows: tuple[Window, ...],
    images: Sequence[np.ndarray],
    sums: Sequence[np.ndarray],
) -> None:
    """Window and resize one slice into images of one or several sizes.

    Args:
        stored: (H, W) int16 or uint16 stored values, C order; may be read-only.
        slope: HU = stored x slope + intercept, never rounded.
        intercept: in HU.
        padding: inclusive range of stored values that are no tissue: 0 in every window; or None.
        windows: C of them, 1 to `catalog.MAX_WINDOWS`.
        images: one (C, S, S) uint8 a size, C order, written; S may differ.
        sums: one (C, 2) uint64 a size, C order, written: sum and sum of squares of the grey levels of a channel.

    Raises:
        ValueError: images or sums do not fit the windows; nothing was written.

    Source: equals the horizontal, then the vertical pass of Pillow's `Image.resize((S, S), BILINEAR)` on each channel
        of `plain.grey_levels`. Pillow 13 goes vertical first for some frames that are not square: 1 grey level at most.
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
    """The compiled passes check no bounds: a wrong shape would corrupt memory."""
    if not 1 <= num_windows <= MAX_WINDOWS:
        raise ValueError(f"1 to {MAX_WINDOWS} windows, not {num_windows}")
    for image, total in zip(images, sums, strict=True):
        size_px = image.shape[-1]
        if image.shape != (num_windows, size_px, size_px) or total.shape != (num_windows, 2):
            raise ValueError(f"image {image.shape} and sums {total.shape} for {num_windows} windows")


def _scratch(height: int, width: int, num_windows: int, sizes_px: tuple[int, ...]) -> _Scratch:
    """This thread's working memory, kept while the shape stays: fresh memory costs more in page faults than a pass.

    Returns:
        band: (BAND, C, width) uint8, the grey levels of a band of rows, with room on both sides.
        quads: (rows / 4, C, columns, 4) uint8, the slice after the horizontal pass, four rows interleaved.
        spans: (sizes, bands, 2) int64, the groups of `quads` that are not black, by band.
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

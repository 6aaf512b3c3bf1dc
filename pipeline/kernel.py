"""This file turns stored values into windowed, resized uint8 images in one pass: the hot path of a build.

The resize is Pillow's own arithmetic, so the result is Pillow's bit for bit: horizontal pass, rounded to uint8,
then vertical pass, each with integer weights of 22 fractional bits. Integers only, so every CPU gives the same digest.

What makes it fast: all windows of a stored value are one look-up of four bytes; a band of rows is looked up in
transposed order, so that both passes run along contiguous bytes; air at the sides and above is not computed.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache

import numba
import numpy as np
from numba import int32, int64, types, uint8, uint16, uint32, uint64, void

from pipeline.catalog import Window

VERSION = 1
"""Raise by hand when a value that `render` or `grey_levels` gives changes: it is part of every fingerprint."""

MAX_WINDOWS = 4  # grey levels of one stored value are packed in one uint32

_FRACTION_BITS = 22  # as Pillow: 32 bits less 8 of the grey level less 2 of headroom
_HALF = 1 << (_FRACTION_BITS - 1)
_LANES = 16  # rows of a band: 64 bytes of packed grey levels, one cache line
_STORED_VALUES = 1 << 16

_TAPS = (int32[::1], int32[::1], int32[:, ::1])  # start, count, weights of `_taps`

_scratch = threading.local()  # one set of buffers a thread: the compiled passes release the GIL


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
        padding: inclusive range of stored values that are no tissue, 0 in every window; or None.
        windows: C of them, 1 to 4.
        images: one (C, S, S) uint8 a size, C order, written; S may differ.
        sums: one (C, 2) uint64 a size, C order, written: sum and sum of squares of the grey levels of a channel.

    Raises:
        ValueError: an array has another shape than this; nothing was written.

    Source: the result equals `PIL.Image.resize((S, S), BILINEAR)` of `grey_levels`, by channel, at every pixel.
    """
    _check_shapes(len(windows), images, sums)
    height, width = stored.shape
    sizes_px = tuple(image.shape[1] for image in images)
    table, first, reach = _lookup_table(slope, intercept, padding, stored.dtype.kind == "i", windows)
    starts, counts, weights = _side_by_side(width, sizes_px)
    band, columns, rows, spans, mixed, acc = _buffers(height, width, sizes_px)
    _horizontal(stored.view(np.uint16), table, first, reach, starts, counts, weights, band, columns, rows, spans)
    left = 0
    for size_px, image, total in zip(sizes_px, images, sums, strict=True):
        _vertical(rows, spans, left, *_taps(width, size_px), *_taps(height, size_px), mixed, acc, image, total)
        left += size_px


def grey_levels(
    stored: np.ndarray, slope: float, intercept: float, padding: tuple[int, int] | None, windows: tuple[Window, ...]
) -> np.ndarray:
    """Window one slice at its native size.

    Args: as for `render`.

    Returns:
        (C, H, W) uint8, floor(255 x + 0.5) of x = clip((HU - (level - width/2)) / width, 0, 1).
    """
    table = _lookup_table(slope, intercept, padding, stored.dtype.kind == "i", windows)[0]
    packed = table[stored.view(np.uint16)].view(np.uint8).reshape(*stored.shape, MAX_WINDOWS)
    return np.ascontiguousarray(np.moveaxis(packed, -1, 0)[: len(windows)])


def _check_shapes(num_windows: int, images: Sequence[np.ndarray], sums: Sequence[np.ndarray]) -> None:
    """The compiled passes do not check bounds: a wrong shape would corrupt memory."""
    if not 1 <= num_windows <= MAX_WINDOWS:
        raise ValueError(f"1 to {MAX_WINDOWS} windows, not {num_windows}")
    for image, total in zip(images, sums, strict=True):
        size_px = image.shape[-1]
        if image.shape != (num_windows, size_px, size_px) or total.shape != (num_windows, 2):
            raise ValueError(f"image {image.shape} and sums {total.shape} for {num_windows} windows")


@lru_cache(maxsize=64)
def _lookup_table(
    slope: float, intercept: float, padding: tuple[int, int] | None, signed: bool, windows: tuple[Window, ...]
) -> tuple[np.ndarray, int, int]:
    """Grey levels of every stored value.

    Returns:
        (65536,) uint32 by the stored value's bit pattern, one byte a window; then the first stored value (as bit
        pattern) that is not black in every window, and how far above it the last one lies (-1 where there is none).
    """
    bits = np.arange(_STORED_VALUES, dtype=np.uint16)
    stored = bits.view(np.int16) if signed else bits
    hu = stored * np.float64(slope) + intercept
    grey = np.zeros((_STORED_VALUES, MAX_WINDOWS), np.uint8)
    for c, window in enumerate(windows):
        x = np.clip((hu - (window.level_hu - window.width_hu / 2)) / window.width_hu, 0, 1)
        grey[:, c] = np.floor(255 * x + 0.5)
    if padding is not None:
        grey[(stored >= padding[0]) & (stored <= padding[1])] = 0
    lit = np.sort(stored[grey.any(axis=1)]).astype(int)
    first, last = (lit[0], lit[-1]) if lit.size else (0, -1)
    return grey.view(np.uint32)[:, 0], int(first) % _STORED_VALUES, int(last - first)


@lru_cache(maxsize=64)
def _taps(length: int, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of a triangle filter, widened by the scale where it shrinks, that resizes `length` pixels to `size_px`.

    Returns:
        (S,) int32 first input pixel; (S,) int32 number of them, at most K; (S, K) int32 weights that sum to 2**22
        but for their rounding.

    Source: Pillow, `src/libImaging/Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`.
    """
    scale = length / size_px
    support = max(scale, 1.0)
    centre = (np.arange(size_px) + 0.5) * scale
    start = np.maximum((centre - support + 0.5).astype(np.int32), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int32), length) - start
    offset = np.arange(count.max())
    distance = np.abs((offset + start[:, None] - centre[:, None] + 0.5) * (1 / support))
    weight = np.where(offset < count[:, None], np.maximum(1 - distance, 0), 0)
    weight /= np.cumsum(weight, axis=1)[:, -1:]  # cumsum adds one after another, as Pillow; sum does not
    return start, count, np.floor(weight * (1 << _FRACTION_BITS) + 0.5).astype(np.int32)


@lru_cache(maxsize=64)
def _side_by_side(width: int, sizes_px: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The taps of all sizes as those of one wide row, so that one horizontal pass serves every size."""
    starts, counts, weights = zip(*(_taps(width, size_px) for size_px in sizes_px), strict=True)
    widest = max(weight.shape[1] for weight in weights)
    padded = [np.pad(weight, ((0, 0), (0, widest - weight.shape[1]))) for weight in weights]
    return np.concatenate(starts), np.concatenate(counts), np.concatenate(padded)


def _buffers(height: int, width: int, sizes_px: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Working memory of this thread, kept while the shape stays: fresh memory costs more in page faults than a pass."""
    shape = (height, width, sizes_px)
    if getattr(_scratch, "shape", None) != shape:
        bands, wide = -(-height // _LANES), sum(sizes_px)
        _scratch.shape = shape
        _scratch.buffers = (
            np.zeros((width, _LANES), np.uint32),  # band: packed grey levels of a band of rows, transposed
            np.zeros((wide, _LANES), np.uint32),  # columns: the same after the horizontal pass
            np.zeros((height, wide), np.uint32),  # rows: the slice after the horizontal pass
            np.zeros((bands, 2), np.int32),  # spans: columns [begin, end) of a band that are not all black
            np.zeros(max(sizes_px), np.uint32),  # mixed: one row of an image, packed
            np.zeros(max(sizes_px) * MAX_WINDOWS, np.int32),  # acc: the same before rounding
        )
    return _scratch.buffers


@numba.njit(cache=True, nogil=True)
def _lit_span(rows, first, reach, lit):  # type: ignore[no-untyped-def]
    """Columns [begin, end) outside which every pixel of these rows is black in all windows."""
    lit[:] = 0
    for y in range(rows.shape[0]):
        row = rows[y]
        for x in range(lit.size):
            lit[x] |= int32(uint16(row[x] - first)) <= reach
    begin, end = 0, lit.size
    while end > 0 and lit[end - 1] == 0:
        end -= 1
    while begin < end and lit[begin] == 0:
        begin += 1
    return begin, end


@numba.njit(cache=True, nogil=True)
def _look_up(rows, table, begin, end, band):  # type: ignore[no-untyped-def]
    """Packed grey levels of a band of rows, transposed: band[x, lane]; black outside [begin, end)."""
    band[:begin] = 0
    band[end:] = 0
    for x in range(begin, end):
        column = band[x]
        for lane in range(rows.shape[0]):
            column[lane] = table[rows[lane, x]]


@numba.njit(cache=True, nogil=True)
def _weigh(source, offset, start, count, weight, acc, grey):  # type: ignore[no-untyped-def]
    """One line of either pass: grey = round(sum over taps of weight x source[start + tap, offset:])."""
    acc[:] = _HALF
    for k in range(count):
        factor, line = weight[k], source[start + k][offset:]
        for i in range(acc.size):
            acc[i] += factor * line[i]
    for i in range(acc.size):
        grey[i] = uint32(acc[i]) >> uint32(_FRACTION_BITS)


@numba.njit(
    void(
        types.Array(uint16, 2, "C", readonly=True, aligned=False),  # as a reader's buffer may give it
        types.Array(uint32, 1, "C", readonly=True),
        uint16,
        int32,
        *_TAPS,
        uint32[:, ::1],
        uint32[:, ::1],
        uint32[:, ::1],
        int32[:, ::1],
    ),
    cache=True,
    nogil=True,
)
def _horizontal(stored, table, first, reach, starts, counts, weights, band, columns, rows, spans):  # type: ignore[no-untyped-def]
    """Look up and resize every row of the slice: rows[y, s], packed."""
    height, wide = rows.shape
    lit = np.empty(stored.shape[1], np.uint16)
    acc = np.empty(MAX_WINDOWS * _LANES, np.int32)
    band_bytes, column_bytes = band.view(np.uint8), columns.view(np.uint8)
    for b in range(spans.shape[0]):
        top = b * _LANES
        bottom = min(top + _LANES, height)
        begin, end = _lit_span(stored[top:bottom], first, reach, lit)
        spans[b, 0], spans[b, 1] = begin, end
        if begin == end:
            rows[top:bottom] = 0
            continue
        _look_up(stored[top:bottom], table, begin, end, band)
        for s in range(wide):
            if begin < starts[s] + counts[s] and starts[s] < end:
                _weigh(band_bytes, 0, starts[s], counts[s], weights[s], acc, column_bytes[s])
            else:
                columns[s] = 0
        for s in range(wide):
            column = columns[s]
            for lane in range(bottom - top):
                rows[top + lane, s] = column[lane]


@numba.njit(
    void(
        uint32[:, ::1], int32[:, ::1], int64, *_TAPS, *_TAPS, uint32[::1], int32[::1], uint8[:, :, ::1], uint64[:, ::1]
    ),
    cache=True,
    nogil=True,
)
def _vertical(rows, spans, left, x_starts, x_counts, x_weights, starts, counts, weights, mixed, acc, image, total):  # type: ignore[no-untyped-def]
    """Resize the columns [left, left + S) of `rows` to one image, and sum its grey levels."""
    num_windows, size_px, _ = image.shape
    x_ends = x_starts + x_counts
    row_bytes, mixed_bytes = rows.view(np.uint8), mixed.view(np.uint8)
    image[:] = 0
    total[:] = 0
    for y in range(size_px):
        bands = spans[starts[y] // _LANES : (starts[y] + counts[y] - 1) // _LANES + 1]
        begin = np.searchsorted(x_ends, bands[:, 0].min(), side="right")
        end = np.searchsorted(x_starts, bands[:, 1].max(), side="left")
        if begin >= end:
            continue
        lit_acc = acc[: MAX_WINDOWS * (end - begin)]
        _weigh(row_bytes, MAX_WINDOWS * (left + begin), starts[y], counts[y], weights[y], lit_acc, mixed_bytes)
        for c in range(num_windows):
            line = image[c, y, begin:end]
            grey_sum, square_sum = int32(0), int32(0)
            for x in range(line.size):
                line[x] = mixed[x] >> uint32(8 * c)
                grey_sum += int32(line[x])
                square_sum += int32(line[x]) * int32(line[x])
            total[c, 0] += uint64(grey_sum)
            total[c, 1] += uint64(square_sum)

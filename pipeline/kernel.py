"""This file turns stored values into windowed, resized uint8 images in one pass: the hot path of a build.

The resize is Pillow's arithmetic: a horizontal pass, rounded to uint8, then a vertical pass, each with integer weights
of 22 fractional bits. Only integers are added, so every CPU gives the same pixels and the same digest.

What makes it fast: all windows of a stored value are one look-up of four bytes; a band of rows is looked up in
transposed order, so that both passes add along contiguous bytes; black columns at the sides of a band are not computed.
"""

import math
import threading
from collections.abc import Sequence
from functools import lru_cache

import numba
import numpy as np
from numba import int32, int64, types, uint8, uint16, uint32, uint64, void

from pipeline.catalog import Window

MAX_WINDOWS = 4  # the grey levels of one stored value are the bytes of one uint32

_FRACTION_BITS = 22  # as Pillow: 32 less 8 bits of the grey level less 2 of headroom
_HALF = 1 << (_FRACTION_BITS - 1)
_LANES = 32  # rows of a band; 16 measured 7 % slower, 64 a quarter
_BAND_BYTES = MAX_WINDOWS * _LANES
_STORED_VALUES = 1 << 16
_CACHE_LINE = 64  # bytes

# Plain tuples: numba's cache on disk would pickle a named tuple's class, and fail to load after it is renamed.
_Taps = tuple[np.ndarray, np.ndarray]
_Scratch = tuple[np.ndarray, ...]

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
        windows: C of them, 1 to 4.
        images: one (C, S, S) uint8 a size, C order, written; S may differ.
        sums: one (C, 2) uint64 a size, C order, written: sum and sum of squares of the grey levels of a channel.

    Raises:
        ValueError: images or sums do not fit the windows; nothing was written.

    Source: equals the horizontal, then the vertical pass of Pillow's `Image.resize((S, S), BILINEAR)` on each channel
        of `grey_levels`. Pillow 13 goes vertical first for some frames that are not square: 1 grey level at most.
    """
    _check_shapes(len(windows), images, sums)
    height, width = stored.shape
    sizes_px = tuple(image.shape[1] for image in images)
    table, first, reach = _lookup_table(slope, intercept, padding, stored.dtype.kind == "i", windows)
    taps, edges, num_taps = _side_by_side(width, sizes_px)
    scratch = _scratch(height, width, sizes_px)
    _horizontal(stored.view(np.uint16), table, first, reach, taps, edges, num_taps, scratch)
    for i, (image, total) in enumerate(zip(images, sums, strict=True)):
        _vertical(scratch, i, edges[i], _taps(height, sizes_px[i]), image, total)


def grey_levels(
    stored: np.ndarray, slope: float, intercept: float, padding: tuple[int, int] | None, windows: tuple[Window, ...]
) -> np.ndarray:
    """Window one slice at its native size.

    Args: as for `render`.

    Returns:
        (C, H, W) uint8, floor(255 x + 0.5) of x = clip((HU - (level - width/2)) / width, 0, 1), in float64.
    """
    table = _lookup_table(slope, intercept, padding, stored.dtype.kind == "i", windows)[0]
    packed = table[stored.view(np.uint16)].view(np.uint8).reshape(*stored.shape, MAX_WINDOWS)
    return np.ascontiguousarray(np.moveaxis(packed, -1, 0)[: len(windows)])


def _check_shapes(num_windows: int, images: Sequence[np.ndarray], sums: Sequence[np.ndarray]) -> None:
    """The compiled passes check no bounds: a wrong shape would corrupt memory."""
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
        (65536,) uint32 by the stored value's bit pattern, one byte a window; then the bit pattern of the first stored
        value that is not black in every window, and how far above it the last one lies.
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
    lit = stored[grey.any(axis=1)].astype(int)
    first, last = (lit.min(), lit.max()) if lit.size else (0, 0)
    return grey.view(np.uint32)[:, 0], int(first) % _STORED_VALUES, int(last - first)


@lru_cache(maxsize=64)
def _taps(length: int, size_px: int) -> _Taps:
    """Weights of a triangle filter, widened by the scale where it shrinks, that resize `length` pixels to `size_px`.

    Returns:
        (S,) int32 first input pixel of an output pixel; (S, K) int32 weights of it and those that follow, which sum to
        2**22 but for their own rounding. All S have K taps, some of weight 0.

    Source: Pillow, `src/libImaging/Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`.
    """
    scale = length / size_px
    support = max(scale, 1.0)
    centre = (np.arange(size_px) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int32), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.int32), length)
    num_taps = _round_up(int((stop - first).max()), length)
    start = np.minimum(first, length - num_taps).astype(np.int32)
    position = start[:, None] + np.arange(num_taps)
    distance = np.abs((position - centre[:, None] + 0.5) * (1 / support))
    weight = np.where((position >= first[:, None]) & (position < stop[:, None]), np.maximum(1 - distance, 0), 0)
    weight /= np.cumsum(weight, axis=1)[:, -1:]  # cumsum adds one after another, as Pillow; sum does not
    return start, np.floor(weight * (1 << _FRACTION_BITS) + 0.5).astype(np.int32)


def _round_up(num_taps: int, length: int) -> int:
    """The number of taps of the next larger loop without memory for its sums, where the line has as many pixels."""
    return next((fixed for fixed in (3, 5) if num_taps <= fixed <= length), num_taps)


@lru_cache(maxsize=64)
def _side_by_side(width: int, sizes_px: tuple[int, ...]) -> tuple[_Taps, np.ndarray, np.ndarray]:
    """The taps of all sizes as those of one wide row, so that one horizontal pass serves them all.

    Returns:
        taps, the weights of fewer taps padded with zeros; the edges of the sizes; the number of taps of each.
    """
    starts, weights = zip(*(_taps(width, size_px) for size_px in sizes_px), strict=True)
    num_taps = np.array([weight.shape[1] for weight in weights])
    padded = [np.pad(weight, ((0, 0), (0, num_taps.max() - weight.shape[1]))) for weight in weights]
    return (np.concatenate(starts), np.concatenate(padded)), np.cumsum((0, *sizes_px)), num_taps


def _scratch(height: int, width: int, sizes_px: tuple[int, ...]) -> _Scratch:
    """This thread's working memory, kept while the shape stays: fresh memory costs more in page faults than a pass."""
    shape = (height, width, sizes_px)
    if getattr(_threads, "shape", None) != shape:
        wide, longest, bands = sum(sizes_px), max(*sizes_px, _LANES), -(-height // _LANES)
        _threads.scratch = (
            np.empty(width, np.uint16),  # lit: which columns of a band are not black
            _aligned((width, _LANES), np.uint32),  # band: packed grey levels of a band of rows, transposed
            _aligned((longest, _LANES), np.uint32),  # columns: the band after the horizontal pass, transposed still
            _aligned((bands * _LANES, wide), np.uint32),  # rows: the slice after the horizontal pass
            np.empty((len(sizes_px), bands, 2), np.int64),  # spans: columns of `rows` not black, by band
            _aligned((longest,), np.uint32),  # line: a packed row of an image
            _aligned((MAX_WINDOWS * longest,), np.int32),  # acc: the line before rounding
        )
        _threads.shape = shape
    return _threads.scratch


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Uninitialised memory that begins a cache line; sums that straddle two made the horizontal pass 2.8x slower."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


_STORED = types.Array(uint16, 2, "C", readonly=True, aligned=False)  # as a reader's buffer may give it
_TABLE = types.Array(uint32, 1, "C")
_TAPS = types.Tuple((int32[::1], int32[:, ::1]))
_SCRATCH = types.Tuple(
    (uint16[::1], uint32[:, ::1], uint32[:, ::1], uint32[:, ::1], int64[:, :, ::1], uint32[::1], int32[::1])
)


@numba.njit(cache=True, nogil=True)
def _lit_span(rows, first, reach, lit):  # type: ignore[no-untyped-def]
    """Columns [begin, end) outside which every pixel of these rows is black in all windows."""
    lit[:] = 0
    for y in range(rows.shape[0]):
        row = rows[y]
        for x in range(lit.size):
            lit[x] |= uint16(row[x] - first) <= reach  # modulo 2**16, so it holds for signed values too
    begin, end = 0, lit.size
    while end > 0 and lit[end - 1] == 0:
        end -= 1
    while begin < lit.size and lit[begin] == 0:
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


@numba.njit(inline="always")
def _weigh_3(source, offset, start, weights, grey, size):  # type: ignore[no-untyped-def]
    """As `_weigh`, for 3 taps; each has its name, so that sums and weights stay in registers: half the time."""
    w0, w1, w2 = weights[0], weights[1], weights[2]
    s0, s1, s2 = source[start][offset:], source[start + 1][offset:], source[start + 2][offset:]
    for i in range(size):
        grey[i] = uint32(_HALF + w0 * s0[i] + w1 * s1[i] + w2 * s2[i]) >> uint32(_FRACTION_BITS)


@numba.njit(inline="always")
def _weigh_5(source, offset, start, weights, grey, size):  # type: ignore[no-untyped-def]
    """As `_weigh_3`, for 5 taps."""
    w0, w1, w2, w3, w4 = weights[0], weights[1], weights[2], weights[3], weights[4]
    s0, s1, s2 = source[start][offset:], source[start + 1][offset:], source[start + 2][offset:]
    s3, s4 = source[start + 3][offset:], source[start + 4][offset:]
    for i in range(size):
        total = _HALF + w0 * s0[i] + w1 * s1[i] + w2 * s2[i] + w3 * s3[i] + w4 * s4[i]
        grey[i] = uint32(total) >> uint32(_FRACTION_BITS)


@numba.njit(inline="always")  # so that a constant size stays one: 2.6x
def _weigh(source, offset, start, weights, grey, size, num_taps, acc):  # type: ignore[no-untyped-def]
    """One line of either pass: grey = round(sum over taps of weight x source[start + tap, offset:])."""
    for i in range(size):
        acc[i] = _HALF
    for k in range(num_taps):
        weight, line = weights[k], source[start + k][offset:]
        for i in range(size):
            acc[i] += weight * line[i]
    for i in range(size):
        grey[i] = uint32(acc[i]) >> uint32(_FRACTION_BITS)


@numba.njit(cache=True, nogil=True)
def _weigh_columns(band, starts, weights, num_taps, acc, columns):  # type: ignore[no-untyped-def]
    """The horizontal pass of a band of rows, transposed as they are: columns[s] of each output pixel."""
    source, greys = band.view(np.uint8), columns.view(np.uint8)
    if num_taps == 3:
        for s in range(starts.size):
            _weigh_3(source, 0, starts[s], weights[s], greys[s], _BAND_BYTES)
    elif num_taps == 5:
        for s in range(starts.size):
            _weigh_5(source, 0, starts[s], weights[s], greys[s], _BAND_BYTES)
    else:
        for s in range(starts.size):
            _weigh(source, 0, starts[s], weights[s], greys[s], _BAND_BYTES, num_taps, acc)


@numba.njit(void(_STORED, _TABLE, uint16, uint16, _TAPS, int64[::1], int64[::1], _SCRATCH), cache=True, nogil=True)
def _horizontal(stored, table, first, reach, taps, edges, num_taps, scratch):  # type: ignore[no-untyped-def]
    """Look up and resize every row of the slice: fills `rows` and `spans`."""
    starts, weights = taps
    lit, band, columns, rows, spans, _, acc = scratch
    for b in range(spans.shape[1]):
        top, bottom = b * _LANES, min((b + 1) * _LANES, stored.shape[0])
        begin, end = _lit_span(stored[top:bottom], first, reach, lit)
        _look_up(stored[top:bottom], table, begin, end, band)
        for i in range(spans.shape[0]):
            left, right = edges[i], edges[i + 1]
            lit_left = left + np.searchsorted(starts[left:right], begin - num_taps[i], side="right")
            lit_right = left + np.searchsorted(starts[left:right], end, side="left")
            spans[i, b, 0], spans[i, b, 1] = lit_left, lit_right
            _weigh_columns(band, starts[lit_left:lit_right], weights[lit_left:lit_right], num_taps[i], acc, columns)
            rows[top:bottom, left:lit_left] = 0
            rows[top:bottom, lit_right:right] = 0
            for s in range(lit_left, lit_right):
                column = columns[s - lit_left]
                for lane in range(_LANES):
                    rows[top + lane, s] = column[lane]


@numba.njit(void(_SCRATCH, int64, int64, _TAPS, uint8[:, :, ::1], uint64[:, ::1]), cache=True, nogil=True)
def _vertical(scratch, i, left, taps, image, total):  # type: ignore[no-untyped-def]
    """Resize the columns [left, left + S) of `rows` to the image of size number i, and sum its grey levels."""
    starts, weights = taps
    _, _, _, rows, spans, line, acc = scratch
    row_bytes, line_bytes = rows.view(np.uint8), line.view(np.uint8)
    num_taps = weights.shape[1]
    image[:] = 0
    total[:] = 0
    for y in range(image.shape[1]):
        bands = spans[i, starts[y] // _LANES : (starts[y] + num_taps - 1) // _LANES + 1]
        begin, end = bands[:, 0].min(), bands[:, 1].max()
        if begin >= end:
            continue
        offset, size = MAX_WINDOWS * begin, MAX_WINDOWS * (end - begin)
        if num_taps == 3:
            _weigh_3(row_bytes, offset, starts[y], weights[y], line_bytes, size)
        elif num_taps == 5:
            _weigh_5(row_bytes, offset, starts[y], weights[y], line_bytes, size)
        else:
            _weigh(row_bytes, offset, starts[y], weights[y], line_bytes, size, num_taps, acc)
        for c in range(image.shape[0]):
            grey = image[c, y, begin - left : end - left]
            grey_sum, square_sum = int32(0), int32(0)
            for x in range(grey.size):
                grey[x] = line[x] >> uint32(8 * c)
                grey_sum += int32(grey[x])
                square_sum += int32(grey[x]) * int32(grey[x])
            total[c, 0] += uint64(grey_sum)
            total[c, 1] += uint64(square_sum)

"""The compiled passes over a slice.

A band of rows is converted to grey levels, then resized horizontally while it is in the L1 cache. Groups of four rows
are interleaved, so that the pixels that the vertical pass adds are adjacent, as they are for the horizontal pass. Black
columns on both sides of a band are skipped, and so are the output pixels that depend only on them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import xxhash
from numba import int32, int64, types, uint8, uint16, uint32, uint64, void

from pipeline.kernel.lanes import (
    HALVES,
    HAS_BYTE_PRODUCTS,
    LANES,
    PARTS,
    QUAD,
    VECTOR_BYTES,
    WEIGHT_BYTES,
    add,
    append_byte,
    gather,
    load,
    load_constant,
    multiply,
    permute,
    scale,
    shift_left,
    shift_right,
    splat,
    store,
    store_bytes,
    store_few_bytes,
    sum_lanes,
    weigh,
    within,
)
from pipeline.kernel.plain import FRACTION_BITS

BAND = 8  # rows; for three windows, their grey levels at 512 px take 12 KB of the L1 cache

# Numba only checks a function's own file to see whether cached code is out of date.
_SOURCES = xxhash.xxh3_64_hexdigest(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))

_ROUNDING = 1 << FRACTION_BITS - 1 - 8 * (PARTS - 1)

_STORED = types.Array(uint16, 2, "C", readonly=True, aligned=False)  # it may be a view of a reader's buffer
_GREY = types.Tuple((uint8[:, ::1], uint16[:, ::1], uint16, uint16, uint16))
_GROUPS = types.Tuple((int64[::1], int64[::1], int64[::1], uint8[::1], uint8[::1]))
_SIZES = types.Tuple((int64[::1], int64, types.boolean))
_ROWS = types.Tuple((int64[::1], int64[::1], uint8[::1]))
_SCRATCH = types.Tuple((uint8[:, :, ::1], uint8[:, :, :, ::1], int64[:, :, ::1]))


def _compiled(signature: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Compile, immediately if a signature is given, and cache the code on disk until a file of this folder changes."""

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f"-{_SOURCES}"  # which is part of the file name in the cache
        return numba.njit(signature, cache=True, nogil=True)(function)

    return decorate


# --- grey levels ----------------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def _any_within(rows, x, first, reach):  # type: ignore[no-untyped-def]
    found = uint32(0)
    for y in range(rows.shape[0]):
        found |= within(rows[y], x, first, reach)
    return found != 0


@_compiled()
def _lit_span(rows, first, reach):  # type: ignore[no-untyped-def]
    """Return (begin, end) of the columns outside which all pixels of these rows are black in all windows."""
    begin, end = 0, rows.shape[1]
    while begin + HALVES <= end and not _any_within(rows, begin, first, reach):
        begin += HALVES
    while begin + HALVES <= end and not _any_within(rows, end - HALVES, first, reach):
        end -= HALVES
    return begin, end


@numba.njit(inline="always")
def _clear(numbers, begin, end):  # type: ignore[no-untyped-def]
    """Set bytes [begin, end), a multiple of 64, to zero."""
    if end - begin == VECTOR_BYTES:  # the usual case; LLVM would turn the loop into a call
        store(numbers, begin, splat(int32(0)))
    else:
        for x in range(begin, end, VECTOR_BYTES):
            store(numbers, x, splat(int32(0)))


@_compiled()
def fill_band(rows, grey, begin, end, band):  # type: ignore[no-untyped-def]
    """Compute the grey levels of columns [begin, end) of a band of rows, and set the margins next to them to black."""
    table, factors, flip, _, _ = grey
    margin = (band.shape[2] - rows.shape[1]) // 2
    for y in range(rows.shape[0]):
        row = rows[y]
        for c in range(band.shape[1]):
            line, done = band[y, c], begin
            _clear(line, begin, begin + margin)
            _clear(line, end + margin, end + 2 * margin)
            if factors.size:
                numbers = flip, factors[c, 0], factors[c, 1], factors[c, 2], factors[c, 3]
                while done + HALVES <= end:
                    scale(row, done, numbers, line, done + margin)
                    done += HALVES
            for x in range(done, end):
                line[x + margin] = table[c, row[x]]


# --- the horizontal pass --------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def _across_near(band, at, group, groups, num_quads):  # type: ignore[no-untyped-def]
    """Return the 16 sums of a group of output pixels whose input pixels fit one vector."""
    _, _, _, positions, weights = groups
    total, line = splat(int32(_ROUNDING)), load(band, at)
    for part in range(PARTS):
        if part:
            total = shift_left(total, int32(8))
        for k in range(num_quads):
            pixels = permute(line, load_constant(positions, (group * num_quads + k) * VECTOR_BYTES))
            total = weigh(total, pixels, weights, ((group * PARTS + part) * num_quads + k) * WEIGHT_BYTES)
    return total


@numba.njit(inline="always")
def _across_far(band, at, group, groups, num_quads):  # type: ignore[no-untyped-def]
    """Return the 16 sums of a group of output pixels."""
    _, _, offsets, _, weights = groups
    total = splat(int32(_ROUNDING))
    for part in range(PARTS):
        if part:
            total = shift_left(total, int32(8))
        for k in range(num_quads):
            pixels = gather(band, at + QUAD * k, offsets, group * LANES)
            total = weigh(total, pixels, weights, ((group * PARTS + part) * num_quads + k) * WEIGHT_BYTES)
    return total


if not HAS_BYTE_PRODUCTS:
    _across_near = _across_far  # never called, but compiled


@numba.njit(inline="always")
def _resize_band(across, num_quads, groups, begin, end, band, quads, row):  # type: ignore[no-untyped-def]
    """Resize a band to the groups [begin, end) of rows of `quads`, starting with row `row`."""
    num_windows, width, wide = band.shape[1], band.shape[2], quads.shape[2]
    for group in range(begin, end):
        for q in range(BAND // QUAD):
            for c in range(num_windows):
                joined = splat(int32(0))
                for y in range(QUAD * q + QUAD - 1, QUAD * q - 1, -1):  # the first byte ends up as the highest
                    at = (y * num_windows + c) * width + groups[0][group]
                    joined = append_byte(joined, across(band, at, group, groups, num_quads))
                store(quads, ((row + q) * num_windows + c) * wide * QUAD + group * VECTOR_BYTES, joined)


@_compiled(void(_STORED, _GREY, _GROUPS, _SIZES, _SCRATCH))
def horizontal(stored, grey, groups, sizes, scratch):  # type: ignore[no-untyped-def]
    """Window and resize all rows of the slice, filling `quads` and `spans` of the scratch memory."""
    begins, ends = groups[0], groups[1]
    edges, num_quads, near = sizes
    band, quads, spans = scratch
    margin, quads_bytes = (band.shape[2] - stored.shape[1]) // 2, quads.shape[2] * QUAD
    for b in range(spans.shape[1]):
        rows, row = stored[b * BAND : (b + 1) * BAND], b * BAND // QUAD
        begin, end = _lit_span(rows, grey[3], grey[4])
        fill_band(rows, grey, begin, end, band)
        for i in range(spans.shape[0]):
            left, right = edges[i], edges[i + 1]
            lit = left + np.searchsorted(ends[left:right], begin + margin, side="right")
            dark = left + np.searchsorted(begins[left:right], end + margin, side="left")
            spans[i, b, 0], spans[i, b, 1] = lit, dark
            for line in range(row * band.shape[1], (row + BAND // QUAD) * band.shape[1]):
                at = line * quads_bytes
                _clear(quads, at + left * VECTOR_BYTES, at + lit * VECTOR_BYTES)
                _clear(quads, at + dark * VECTOR_BYTES, at + right * VECTOR_BYTES)
            # A constant number of quads lets LLVM unroll the loops; it is nearly always 1 or 2.
            if near and num_quads == 1:
                _resize_band(_across_near, 1, groups, lit, dark, band, quads, row)
            elif near:
                _resize_band(_across_near, 2, groups, lit, dark, band, quads, row)
            else:
                _resize_band(_across_far, num_quads, groups, lit, dark, band, quads, row)


# --- the vertical pass ----------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def _down(quads, at, step, weights, first, num_quads):  # type: ignore[no-untyped-def]
    """Return the grey levels of 16 pixels of an output row."""
    total = splat(int32(_ROUNDING))
    for part in range(PARTS):
        if part:
            total = shift_left(total, int32(8))
        for k in range(num_quads):
            pixels = load(quads, at + k * step)
            total = weigh(total, pixels, weights, first + (part * num_quads + k) * WEIGHT_BYTES)
    return shift_right(total, int32(FRACTION_BITS))


@numba.njit(inline="always")
def _resize_row(num_quads, quads, at, step, weights, first, begin, end, left, image, to):  # type: ignore[no-untyped-def]
    """Resize groups [begin, end) of quads to the row of the image at offset `to`; return the two sums by lane."""
    sums, squares, side = splat(int32(0)), splat(int32(0)), image.shape[2]
    for group in range(begin, end):
        grey = _down(quads, at + group * VECTOR_BYTES, step, weights, first, num_quads)
        sums, squares = add(sums, grey), add(squares, multiply(grey, grey))
        x = (group - left) * LANES
        if x + LANES <= side:
            store_bytes(image, to + x, grey)
        else:
            store_few_bytes(image, to + x, grey, side - x)
    return sums, squares


@_compiled(void(_SCRATCH, int64, int64, _ROWS, uint8[:, :, ::1], uint64[:, ::1]))
def vertical(scratch, i, left, rows, image, total):  # type: ignore[no-untyped-def]
    """Resize the columns of `quads` that start at group `left` to the image of size number i, and sum grey levels."""
    firsts, counts, weights = rows
    _, quads, spans = scratch
    num_windows, row_bytes, side = quads.shape[1], quads.shape[2] * QUAD, image.shape[1]
    step, weight_bytes = num_windows * row_bytes, counts.max() * PARTS * WEIGHT_BYTES
    image.reshape(-1)[:] = 0
    total[:] = 0
    for y in range(side):
        first, count = firsts[y], counts[y]
        begin, end = quads.shape[2], 0
        for b in range(first * QUAD // BAND, ((first + count) * QUAD - 1) // BAND + 1):
            begin, end = min(begin, spans[i, b, 0]), max(end, spans[i, b, 1])
        for c in range(num_windows):
            at, to, w = (first * num_windows + c) * row_bytes, (c * side + y) * side, y * weight_bytes
            if count == 1:
                sums, squares = _resize_row(1, quads, at, step, weights, w, begin, end, left, image, to)
            elif count == 2:
                sums, squares = _resize_row(2, quads, at, step, weights, w, begin, end, left, image, to)
            else:
                sums, squares = _resize_row(count, quads, at, step, weights, w, begin, end, left, image, to)
            total[c, 0] += sum_lanes(sums)
            total[c, 1] += sum_lanes(squares)

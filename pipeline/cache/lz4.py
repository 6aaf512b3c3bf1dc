"""Compress images into LZ4 that is fast to decode, with fewer and longer matches than the usual encoders choose.

The time to decode LZ4 is dominated by mispredicted branches, one or two per match, so a match of four bytes costs a
reader as much as one of four hundred. CT noise has many short matches, each of which saves only a byte. Here a match
has at least seven bytes, and gives way to a longer one that begins within the next two bytes. On phantom slices the
result is 6 % smaller than that of blosc's LZ4 at level 5 and decodes in three quarters of the time, for the same
encoding time; `benchmarks/compression.py` measures this.

Encoding is limited by mispredicted branches too, so the encoder has few branches: common bytes are counted 64 at a
time, lengths are written without branching on how many bytes they take, and an earlier position of the image is read
only if sixteen more bits of the hash agree.

Source: lz4, doc/lz4_Block_format.md; c-blosc, README_CHUNK_FORMAT.rst.
"""

import struct
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, njit, types, uint8, uint32, uint64
from numba.core.cgutils import create_struct_proxy
from numba.extending import intrinsic

MIN_MATCH = 7  # bytes; 8 decodes and encodes 4 to 7 % faster but takes 1.5 % more bytes; 6 has the opposite effect
LAZY_BYTES = 2  # a match that begins up to this many bytes later is preferred
LAZY_GAIN = 2  # if it is at least this many bytes longer: one byte is not worth the misprediction
WIDE = 64  # bytes compared or copied at once, one bit each of a 64-bit mask; 32 is 4 % slower, even without AVX-512
HASH_BITS = 13  # entries of four bytes, 32 KB in all; half as many take 0.8 % more bytes and 4 % less time
SKIP_BITS = 5  # after 2**5 misses in a row the search advances two bytes per step, after another 2**5 three

WINDOW = 1 << 16  # an offset has 16 bits
LAST_LITERALS = 5  # bytes at the end that no match may cover
LAST_BEGIN = LAZY_BYTES + WIDE + LAST_LITERALS  # the search ends this many bytes before the end; the format requires 12
# Two versions, flags, item size; size, block size, stored size; offset of the only block.
CHUNK_HEADER = struct.Struct("<4B4I")
BLOCK_LENGTH = struct.Struct("<I")
BLOCK_BEGINS = CHUNK_HEADER.size + BLOCK_LENGTH.size
FLAG_LZ4, FLAG_STORED = 1 << 5, 1 << 1

_U1, _U64, _WIDE = ir.IntType(1), ir.IntType(64), ir.VectorType(ir.IntType(8), WIDE)


def compress_into(image: np.ndarray, out: np.ndarray, at: int) -> int:
    """Compress an image into one blosc chunk: LZ4, one block, no shuffle.

    Args:
        image: N uint8, C order, any shape, not empty.
        out: uint8, written from `at` on, up to N + N / 255 + 128 bytes, even if the chunk turns out shorter.

    Returns:
        Offset in `out` of the end of the chunk.
    """
    source = image.reshape(-1)
    size = len(source)
    length = _encode(source, out, at + BLOCK_BEGINS) - at
    stored_length = size + CHUNK_HEADER.size - 4
    if length >= stored_length:  # noise: store the pixels uncompressed
        CHUNK_HEADER.pack_into(out.data, at, 2, 1, FLAG_LZ4 | FLAG_STORED, 1, size, size, stored_length, 0)
        out[at + CHUNK_HEADER.size - 4 : at + stored_length] = source
        return at + stored_length
    CHUNK_HEADER.pack_into(out.data, at, 2, 1, FLAG_LZ4, 1, size, size, length, CHUNK_HEADER.size)
    BLOCK_LENGTH.pack_into(out.data, at + CHUNK_HEADER.size, length - BLOCK_BEGINS)
    return at + length


def _load(context: Any, array: Any, index: Any) -> Any:
    """Read eight bytes of a uint8 array at any offset, as a little-endian number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(context, builder, signature.args[0], arguments[0], arguments[1], _U64)

    return uint64(array, int64), generate


def _compare(context: Any, array: Any, index: Any, other: Any) -> Any:
    """Count the bytes, up to WIDE, that two offsets of a uint8 array have in common."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, *places = arguments
        one, two = (_read(context, builder, signature.args[0], array, place, _WIDE) for place in places)
        differ = builder.bitcast(builder.icmp_unsigned("!=", one, two), _U64)
        return builder.cttz(differ, _U1(False))

    return int64(array, int64, int64), generate


def _copy(context: Any, source: Any, index: Any, out: Any, at: Any) -> Any:
    """Copy WIDE bytes from one uint8 array to another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, index, out, at = arguments
        value = _read(context, builder, signature.args[0], source, index, _WIDE)
        builder.store(value, _place(context, builder, signature.args[2], out, at, _WIDE), align=1)
        return context.get_dummy_value()

    return types.void(source, int64, out, int64), generate


def _expect_not(context: Any, condition: Any) -> Any:
    """Mark a condition as unlikely: LLVM then branches, instead of computing both outcomes and selecting one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        expect = builder.module.declare_intrinsic("llvm.expect", (_U1,), ir.FunctionType(_U1, (_U1, _U1)))
        return builder.call(expect, (arguments[0], _U1(False)))

    return types.boolean(types.boolean), generate


_read_eight: Any = intrinsic(_load)
_in_common: Any = intrinsic(_compare)
_copy_wide: Any = intrinsic(_copy)
_unlikely: Any = intrinsic(_expect_not)


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any, unit: Any) -> Any:
    """Return an LLVM pointer to a unit of several bytes that starts at an element of a uint8 array.

    It is converted from an integer: otherwise LLVM would derive one of two overlapping loads from the other, which is
    slower.
    """
    data = create_struct_proxy(kind)(context, builder, array).data
    return builder.inttoptr(builder.add(builder.ptrtoint(data, _U64), index), unit.as_pointer())


def _read(context: Any, builder: Any, kind: Any, array: Any, index: Any, unit: Any) -> Any:
    return builder.load(_place(context, builder, kind, array, index, unit), align=1)


@njit(inline="always")
def _look_up(source: np.ndarray, entries: np.ndarray, at: int, likely: bool) -> Any:
    """Find the latest position with the hash of this one, and record this one in the table.

    An entry consists of 16 more bits of the hash and the low 16 bits of the position. If a match is unlikely, comparing
    the hash bits avoids a random read of the image; if one is likely, the comparison would only cost a misprediction.
    An empty entry, or one whose position has left the window, still gives an offset inside the image, and bytes in
    common are a match wherever they come from.

    Returns:
        The offset back to that position, and the number of bytes in common, or 0.
    """
    first = _read_eight(source, at) << uint64(64 - 8 * MIN_MATCH)
    hashed = first * uint64(0x9E3779B185EBCA87) >> uint64(64 - HASH_BITS - 16)
    slot, entry = hashed >> uint64(16), uint32(hashed << uint64(16) | uint64(at & WINDOW - 1))
    earlier, entries[slot] = entries[slot], entry
    offset = int64(entry - earlier & uint64(WINDOW - 1))
    if (likely or (entry ^ earlier) < uint64(WINDOW)) and offset > 0:
        return offset, _in_common(source, at, at - offset)
    return offset, 0


@njit(inline="always")
def _end_of_match(source: np.ndarray, at: int, offset: int, stop: int) -> int:
    """Return where a match that reaches `at` ends, at most `stop`."""
    while at <= stop - WIDE:
        length = _in_common(source, at, at - offset)
        at += length
        if length < WIDE:
            return at
    while at < stop and source[uint64(at)] == source[uint64(at - offset)]:
        at += 1
    return at


@njit(inline="always")
def _begin_of_match(source: np.ndarray, at: int, offset: int, start: int) -> int:
    """Return where a match that contains `at` begins, at least `start`."""
    while at > start and at > offset and source[uint64(at - 1)] == source[uint64(at - 1 - offset)]:
        at -= 1
    return at


@njit(inline="always")
def _write_length(out: np.ndarray, at: int, rest: int) -> int:
    """Write what a length exceeds the token's four bits by, nothing if negative; return the next offset."""
    while rest >= 255:
        out[uint64(at)] = 255
        at += 1
        rest -= 255
    out[uint64(at)] = rest  # if negative, the next write overwrites it, which saves a branch
    return at + (rest >= 0)


@njit(inline="always")
def _write_match(
    source: np.ndarray, written: int, begin: int, offset: int, length: int, out: np.ndarray, at: int
) -> int:
    """Write the literals from `written` to `begin`, then a match; return the next offset."""
    literals = begin - written
    out[uint64(at)] = min(literals, 15) << 4 | min(length - 4, 15)
    at = _write_length(out, at + 1, literals - 15)
    _copy_wide(source, written, out, at)
    for i in range(WIDE, literals, WIDE):  # up to 63 bytes too many, which are overwritten later
        _copy_wide(source, written + i, out, at + i)
    at += literals
    out[uint64(at)], out[uint64(at + 1)] = offset & 255, offset >> 8
    return _write_length(out, at + 2, length - 19)


# Indices are cast to unsigned where numba would otherwise check whether they are negative.
@njit(int64(types.Array(uint8, 1, "C", readonly=True), uint8[::1], int64), cache=True, nogil=True)
def _encode(source: np.ndarray, out: np.ndarray, at: int) -> int:
    """Write the LZ4 block of `source` to `out` from `at` on; return where it ends."""
    entries = np.zeros(1 << HASH_BITS, np.uint32)
    written, here, tries = 0, 1, 1 << SKIP_BITS
    stop, last = len(source) - LAST_LITERALS, len(source) - LAST_BEGIN
    while here < last:
        offset, length = _look_up(source, entries, here, False)
        if length < MIN_MATCH:
            here += tries >> SKIP_BITS
            tries += 1
            continue
        begin, end = here, here + length
        for later in range(here + 1, here + 1 + LAZY_BYTES):
            other, length = _look_up(source, entries, later, True)
            if _unlikely(length >= end - begin + LAZY_GAIN):
                begin, offset, end = later, other, later + length
        if end - begin == WIDE:
            end = _end_of_match(source, end, offset, stop)
        begin = _begin_of_match(source, begin, offset, written)
        at = _write_match(source, written, begin, offset, end - begin, out, at)
        written = here = end
        tries = 1 << SKIP_BITS
    out[uint64(at)] = min(len(source) - written, 15) << 4
    at = _write_length(out, at + 1, len(source) - written - 15)
    for i in range(written, len(source)):
        out[uint64(at + i - written)] = source[uint64(i)]
    return at + len(source) - written

"""This file compresses images into LZ4 that is fast to decode: fewer and longer matches than the usual encoders take.

Decoding LZ4 is waiting for mispredicted branches, one or two a match, so a match of four bytes costs a reader as much
as one of four hundred. In the noise of CT the short ones are many, and each saves a byte. Here a match has six bytes or
more and gives way to a longer one that begins within the next two: on phantom slices 7 % smaller than blosc's LZ4 at
level 5 and decoded in five sixths of the time, for half as much again to encode, as `benchmarks/compression.py` shows.

Source: lz4, doc/lz4_Block_format.md; c-blosc, README_CHUNK_FORMAT.rst.
"""

import struct
import threading
from typing import Any

import numpy as np
from numba import int64, njit, types, uint8, uint64
from numba.core.cgutils import create_struct_proxy
from numba.extending import intrinsic

MIN_MATCH = 6  # bytes; 8 decodes a tenth faster and takes 3 % more bytes
LATER = 2  # a match that begins up to so many bytes later is taken instead if it is longer
LONG_ENOUGH = 32  # bytes of a match that no better one is looked for
HASH_BITS = 12  # of positions, 16 KB: with 32 KB they leave the first cache, and encoding takes a fifth longer
SKIP_BITS = 6  # after 2**6 misses in a row the search takes two bytes a step, after as many again three

WINDOW = 1 << 16  # an offset has 16 bits
LAST_LITERALS = 5  # bytes at the end that no match may cover
LAST_BEGIN = 20  # bytes before the end where the last match may begin: the format's 12, and 8 are read at once
# Two versions, flags, size of an item; size, size of a block, stored size; where the one block begins.
CHUNK_HEADER = struct.Struct("<4B4I")
BLOCK_LENGTH = struct.Struct("<I")
BLOCK_BEGINS = CHUNK_HEADER.size + BLOCK_LENGTH.size
FLAG_LZ4, FLAG_STORED = 1 << 5, 1 << 1

_threads = threading.local()  # the compiled loop releases the GIL: working memory must not be shared


def compress(image: np.ndarray) -> bytes:
    """Compress an image into one chunk of blosc: LZ4, one block, no shuffle.

    Args:
        image: uint8, C order, any shape, not empty.
    """
    source = image.reshape(-1)
    size, out = len(source), _scratch(len(source))
    end = _encode(source, out, BLOCK_BEGINS)
    if end >= size + CHUNK_HEADER.size - 4:  # noise: the pixels as they are
        header = CHUNK_HEADER.pack(2, 1, FLAG_LZ4 | FLAG_STORED, 1, size, size, size + CHUNK_HEADER.size - 4, 0)
        return header[:-4] + source.tobytes()
    CHUNK_HEADER.pack_into(out.data, 0, 2, 1, FLAG_LZ4, 1, size, size, end, CHUNK_HEADER.size)
    BLOCK_LENGTH.pack_into(out.data, CHUNK_HEADER.size, end - BLOCK_BEGINS)
    return out[:end].tobytes()


def _scratch(size: int) -> np.ndarray:
    """Memory for the longest chunk of `size` bytes, kept by thread: new memory would cost a tenth of the time."""
    needed = size + size // 255 + BLOCK_BEGINS + 32
    if len(getattr(_threads, "out", ())) < needed:
        _threads.out = np.empty(needed, np.uint8)
    return _threads.out


def _load(context: Any, array: Any, index: Any) -> Any:
    """Read eight bytes of a uint8 array at any place, as a little-endian number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature, arguments), align=1)

    return uint64(array, int64), generate


def _store(context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight bytes into a uint8 array at any place."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, signature, arguments), align=1)
        return context.get_dummy_value()

    return types.void(array, int64, uint64), generate


def _count_zeros(context: Any, number: Any) -> Any:
    """Count the zero bits below the lowest one of a uint64, which is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return int64(uint64), generate


_eight: Any = intrinsic(_load)
_put_eight: Any = intrinsic(_store)
_trailing_zeros: Any = intrinsic(_count_zeros)


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """LLVM's pointer to an element of an array, as one to eight bytes."""
    data = create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), context.get_value_type(uint64).as_pointer())


@njit(inline="always")
def _hash(eight: Any) -> Any:
    first = eight << uint64(64 - 8 * MIN_MATCH)
    return int64((first * uint64(0x9E3779B185EBCA87)) >> uint64(64 - HASH_BITS))


@njit(inline="always")
def _begin_alike(a: Any, b: Any) -> Any:
    """Whether two times eight bytes have the same first MIN_MATCH."""
    return (a ^ b) << uint64(64 - 8 * MIN_MATCH) == 0


@njit(inline="always")
def _end_of_match(source: np.ndarray, at: int, earlier: int, stop: int) -> int:
    """Where two stretches that begin at `at` and `earlier` begin to differ, at most `stop`."""
    while at < stop - 8:
        differs = _eight(source, at) ^ _eight(source, earlier)
        if differs:
            return at + (_trailing_zeros(differs) >> 3)
        at += 8
        earlier += 8
    while at < stop and source[at] == source[earlier]:
        at += 1
        earlier += 1
    return at


@njit(inline="always")
def _write_rest(out: np.ndarray, at: int, rest: int) -> int:
    """Write what of a length does not fit into the token's four bits; returns where to go on."""
    while rest >= 255:
        out[at] = 255
        at += 1
        rest -= 255
    out[at] = rest
    return at + 1


@njit(inline="always")
def _write_token(out: np.ndarray, at: int, literals: int) -> int:
    """Write a token with the number of literals that follow; returns where they go."""
    out[at] = min(literals, 15) << 4
    return at + 1 if literals < 15 else _write_rest(out, at + 1, literals - 15)


@njit(inline="always")
def _write_match(out: np.ndarray, token: int, at: int, offset: int, length: int) -> int:
    """Write a match and complete its token; returns where to go on."""
    out[at], out[at + 1] = offset & 255, offset >> 8
    out[token] |= min(length - 4, 15)
    return at + 2 if length < 19 else _write_rest(out, at + 2, length - 19)


@njit(int64(types.Array(uint8, 1, "C", readonly=True), uint8[::1], int64), cache=True, nogil=True)
def _encode(source: np.ndarray, out: np.ndarray, at: int) -> int:
    """Write the LZ4 block of `source` to `out` from `at` on; returns where it ends."""
    positions = np.zeros(1 << HASH_BITS, np.uint32)
    written, here, tries = 0, 1, 1 << SKIP_BITS
    stop, last = len(source) - LAST_LITERALS, len(source) - LAST_BEGIN
    while here < last:
        # No function takes the arrays here: numba would count a reference, and that costs as much as the rest.
        eight = _eight(source, here)
        slot = _hash(eight)
        earlier = int64(positions[slot])
        positions[slot] = here
        if here - earlier >= WINDOW or not _begin_alike(eight, _eight(source, earlier)):
            here += tries >> SKIP_BITS
            tries += 1
            continue
        begin, end = here, _end_of_match(source, here + MIN_MATCH, earlier + MIN_MATCH, stop)
        for later in range(here + 1, min(here + 1 + LATER, last)):
            if end - here >= LONG_ENOUGH:
                break
            eight = _eight(source, later)
            slot = _hash(eight)
            other = int64(positions[slot])
            positions[slot] = later
            if later - other < WINDOW and _begin_alike(eight, _eight(source, other)):
                other_end = _end_of_match(source, later + MIN_MATCH, other + MIN_MATCH, stop)
                if other_end > end + later - here:
                    begin, earlier, end = later, other, other_end
        while begin > written and earlier > 0 and source[begin - 1] == source[earlier - 1]:
            begin -= 1
            earlier -= 1
        token, at = at, _write_token(out, at, begin - written)
        for i in range(0, begin - written, 8):  # up to seven too many, which are written over
            _put_eight(out, at + i, _eight(source, written + i))
        at = _write_match(out, token, at + begin - written, begin - earlier, end - begin)
        written = here = end
        tries = 1 << SKIP_BITS
        if here < last:
            positions[_hash(_eight(source, here - 2))] = here - 2
    at = _write_token(out, at, len(source) - written)
    for i in range(written, len(source)):
        out[at + i - written] = source[i]
    return at + len(source) - written

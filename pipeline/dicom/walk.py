"""This file walks over the elements of a plain DICOM file, compiled: nine in ten are of no use here."""

from typing import NamedTuple

import numpy as np
from numba import boolean, int64, njit, types, uint8

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
VRS = LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# By the two characters as a number: the bytes of an element before its value, 0 for an unknown VR.
_HEAD_BYTES = np.zeros(1 << 16, np.uint8)
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in VRS]] = 8
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in LONG_VRS]] = 12


AFTER_META = 0x00030000


class Walk(NamedTuple):
    """Where a file has what is wanted of it.

    Attributes:
        places: [tag, offset, length] of the value of each wanted element that was passed, in the order of the file.
        begin: where the data set begins, behind the file meta information; -1 where that is not plain.
        implicit: whether the data set is in Implicit VR, by the look of its first element.
        end: where its first element from `until` on begins; -1 where the data set is not plain up to there.
    """

    places: list[list[int]]
    begin: int
    implicit: bool
    end: int


def walk(data: memoryview, at: int, wanted: np.ndarray, until: int) -> Walk:
    """Walk over the top-level elements of a file in Little Endian: file meta information, if any, then data set.

    Not plain is an undefined length, an unknown VR, a value beyond the end, no element from `until` on, or the same
    elements again and again.

    Args:
        at: where the first element begins.
        wanted: (n,) int64 tags.
        until: the first tag of those that end the walk.

    Source: DICOM PS3.5 7.1, PS3.10 7.1.
    """
    found = np.empty((2 * len(wanted), 3), np.int64)
    count, begin, implicit, end = _walk(np.frombuffer(data, np.uint8), at, wanted, until, _HEAD_BYTES, found)
    return Walk(found[:count].tolist(), begin, implicit, end)


@njit(inline="always")
def _number(body, at):  # type: ignore[no-untyped-def]
    """The unsigned number in the two bytes at a place."""
    return int64(body[at]) | int64(body[at + 1]) << 8


_INPUT = types.Array(uint8, 1, "C", readonly=True)


_OUTPUT = types.Tuple((int64, int64, boolean, int64))


@njit(_OUTPUT(_INPUT, int64, int64[::1], int64, uint8[::1], int64[:, ::1]), cache=True, nogil=True)
def _walk(data, at, wanted, until, head_bytes, found):  # type: ignore[no-untyped-def]
    """`walk` into an array; returns how many places, and the rest of a `Walk`.

    To return the array would take as long again, and to assign rows as a whole six times as long to compile.
    """
    count, begin, implicit = 0, int64(-1), False
    while at <= len(data) - 12 and count < len(found):
        tag, vr, length = _number(data, at) << 16 | _number(data, at + 2), _number(data, at + 4), _number(data, at + 6)
        if begin < 0 and tag >= AFTER_META:
            begin, implicit = at, head_bytes[vr] == 0
        if tag >= until:
            return count, begin, implicit, at
        at += 8
        if implicit:
            length = vr | length << 16
        elif head_bytes[vr] == 12:
            length = _number(data, at) | _number(data, at + 2) << 16
            at += 4
        elif head_bytes[vr] == 0:
            break
        if begin >= 0 and tag < AFTER_META:
            break
        for one in wanted:
            if one == tag:
                found[count, 0], found[count, 1], found[count, 2] = tag, at, length
                count += 1
        at += length
    return count, begin, implicit, int64(-1)

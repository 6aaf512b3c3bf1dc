"""This file steps over the elements of a plain DICOM data set, compiled: nine in ten are of no use here."""

import numpy as np
from numba import boolean, int64, njit, types, uint8

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
VRS = LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# By the two characters as a number: the bytes of an element before its value, 0 for an unknown VR.
_HEAD_BYTES = np.zeros(1 << 16, np.uint8)
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in VRS]] = 8
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in LONG_VRS]] = 12


def find_elements(body: memoryview, at: int, implicit: bool, wanted: np.ndarray, until: int) -> list[list[int]]:
    """Find top-level elements of a data set in Little Endian.

    Args:
        at: where its first element begins.
        wanted: (n,) int64 tags.
        until: the first tag of those that end the search.

    Returns:
        [tag, offset, length] of the value of each wanted element, in the order of the file; then [tag, offset of the
        element, 0] of the one that ended the search. Empty where the data set is not plain: an undefined length, an
        unknown VR, a value beyond the end, no such end, or the same elements again and again.

    Source: DICOM PS3.5 7.1.
    """
    found = np.empty((2 * len(wanted) + 1, 3), np.int64)
    count = _find(np.frombuffer(body, np.uint8), at, implicit, wanted, until, _HEAD_BYTES, found)
    return found[:count].tolist()  # type: ignore[no-any-return]


@njit(inline="always")
def _number(body, at):  # type: ignore[no-untyped-def]
    """The unsigned number in the two bytes at a place."""
    return int64(body[at]) | int64(body[at + 1]) << 8


_INPUT = types.Array(uint8, 1, "C", readonly=True)


@njit(int64(_INPUT, int64, boolean, int64[::1], int64, uint8[::1], int64[:, ::1]), cache=True, nogil=True)
def _find(body, at, implicit, wanted, until, head_bytes, found):  # type: ignore[no-untyped-def]
    """`find_elements` into an array; returns how many.

    To return the array would take as long again, and to assign rows as a whole six times as long to compile.
    """
    count = 0
    while at <= len(body) - 12 and count < len(found):
        tag, vr, length = _number(body, at) << 16 | _number(body, at + 2), _number(body, at + 4), _number(body, at + 6)
        if tag >= until:
            found[count, 0], found[count, 1], found[count, 2] = tag, at, 0
            return count + 1
        at += 8
        if implicit:
            length = vr | length << 16
        elif head_bytes[vr] == 12:
            length = _number(body, at) | _number(body, at + 2) << 16
            at += 4
        elif head_bytes[vr] == 0:
            break
        for one in wanted:
            if one == tag:
                found[count, 0], found[count, 1], found[count, 2] = tag, at, length
                count += 1
        at += length
    return 0

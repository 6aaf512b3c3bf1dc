"""Walk over the elements of a plain DICOM file: nine in ten are of no use here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.compiled import compiled_or_plain

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
VRS = LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# By the two characters as a number: the bytes of an element before its value, 0 for an unknown VR.
_HEAD_BYTES = np.zeros(1 << 16, np.uint8)
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in VRS]] = 8
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in LONG_VRS]] = 12


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
    count, begin, implicit, end = _elements(np.frombuffer(data, np.uint8), at, wanted, until, _HEAD_BYTES, found)
    return Walk(found[:count].tolist(), begin, implicit, end)


_Elements = Callable[..., tuple[int, int, bool, int]]


def _compiled() -> _Elements:
    from pipeline.dicom.elements import elements  # not above: whether numba can be had here is what is asked

    return elements


def _is_right(elements: _Elements) -> bool:
    """Walk over two elements in Explicit VR and stop at the pixels."""
    first = b"\x08\x00\x60\x00CS\x02\x00CT"
    data = np.frombuffer(first + b"\x28\x00\x10\x00US\x02\x00\x10\x00" + b"\xe0\x7f\x10\x00OW\0\0\0\0\0\0", np.uint8)
    found = np.empty((4, 3), np.int64)
    outcome = elements(data, 0, np.array([0x00080060, 0x00280010]), 0x7FE00008, _HEAD_BYTES, found)
    places = [[0x00080060, 8, 2], [0x00280010, len(first) + 8, 2]]
    return tuple(outcome) == (2, 0, False, 20) and found[:2].tolist() == places


def _not_plain(*arguments: Any) -> tuple[int, int, bool, int]:
    """Call no file plain, so that pydicom reads them all."""
    return 0, -1, False, -1


_elements = compiled_or_plain("walk over a header", _compiled, _is_right, _not_plain)

"""Find the needed elements of a plain DICOM file quickly, skipping the nine in ten that are not needed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.compiled import compiled_or_plain

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
VRS = LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# By VR as a little-endian number: size of the element's head, the bytes before its value; 0 for an unknown VR.
_HEAD_BYTES = np.zeros(1 << 16, np.uint8)
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in VRS]] = 8
_HEAD_BYTES[[int.from_bytes(vr, "little") for vr in LONG_VRS]] = 12


class Walk(NamedTuple):
    """The locations of the wanted elements in a file.

    Attributes:
        places: [tag, offset, length] of the value of each wanted element before `end`, in file order.
        begin: offset of the data set, after the file meta information; -1 if the latter is not plain.
        implicit: whether the data set appears to be Implicit VR, judging by its first element.
        end: offset of the first element with a tag of at least `until`; -1 if the data set is not plain up to there.
    """

    places: list[list[int]]
    begin: int
    implicit: bool
    end: int


def walk(data: memoryview, at: int, wanted: np.ndarray, until: int) -> Walk:
    """Find elements at the top level of a Little Endian file: the file meta information, if any, and the data set.

    A file is not plain if it has an undefined length, an unknown VR, a value that exceeds the file, no element from
    `until` on, or repeats the wanted elements.

    Args:
        data: the file.
        at: offset of the first element.
        wanted: (n,) int64 tags.
        until: the walk ends at the first tag that is not less than this.

    Source: DICOM PS3.5 7.1, PS3.10 7.1.
    """
    found = np.empty((2 * len(wanted), 3), np.int64)
    count, begin, implicit, end = _elements(np.frombuffer(data, np.uint8), at, wanted, until, _HEAD_BYTES, found)
    return Walk(found[:count].tolist(), begin, implicit, end)


_Elements = Callable[..., tuple[int, int, bool, int]]


def _compiled() -> _Elements:
    from pipeline.dicom.elements import elements  # imported here, as numba may be missing or broken

    return elements


def _self_test(elements: _Elements) -> bool:
    """Return whether a walk over two elements in Explicit VR stops at the pixels."""
    first = b"\x08\x00\x60\x00CS\x02\x00CT"
    data = np.frombuffer(first + b"\x28\x00\x10\x00US\x02\x00\x10\x00" + b"\xe0\x7f\x10\x00OW\0\0\0\0\0\0", np.uint8)
    found = np.empty((4, 3), np.int64)
    outcome = elements(data, 0, np.array([0x00080060, 0x00280010]), 0x7FE00008, _HEAD_BYTES, found)
    places = [[0x00080060, 8, 2], [0x00280010, len(first) + 8, 2]]
    return tuple(outcome) == (2, 0, False, 20) and found[:2].tolist() == places


def _never_plain(*arguments: Any) -> tuple[int, int, bool, int]:
    """Report every file as not plain, so that pydicom reads it."""
    return 0, -1, False, -1


_elements = compiled_or_plain("walk over a header", _compiled, _self_test, _never_plain)

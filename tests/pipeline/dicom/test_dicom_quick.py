"""The compiled header walk equals a plain one, and cached functions of elements equal uncached ones."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dicom import facts, kinds, tags
from pipeline.dicom.header import MEDIA_STORAGE_SOP_CLASS, PIXEL_ELEMENTS, TRANSFER_SYNTAX
from pipeline.dicom.pixel_format import read_pixel_format
from pipeline.dicom.rejects import Rejected
from pipeline.dicom.walk import LONG_VRS, VRS, Walk, walk

META = [TRANSFER_SYNTAX, MEDIA_STORAGE_SOP_CLASS]
TAGS = st.sampled_from([0x00020000, *META, *tags.NEEDED_ELEMENTS[:6], 0x00090010, tags.PIXEL_DATA])
WANTED = np.array([*META, *tags.NEEDED_ELEMENTS])


def plain_walk(data: bytes, at: int) -> Walk:
    """Implement `walk` in plain Python."""
    places: list[list[int]] = []
    begin, implicit = -1, False
    while at + 12 <= len(data):
        group, element, vr, length = struct.unpack_from("<HH2sH", data, at)
        tag, head = group << 16 | element, 8
        if begin < 0 and group > 2:
            begin, implicit = at, vr not in VRS
        if tag >= PIXEL_ELEMENTS[0]:
            return Walk(places, begin, implicit, at)
        if implicit:
            (length,) = struct.unpack_from("<4xL", data, at)
        elif vr in LONG_VRS:
            (length,), head = struct.unpack_from("<8xL", data, at), 12
        elif vr not in VRS:
            break
        if begin >= 0 and group <= 2:
            break
        if tag in WANTED:
            places.append([tag, at + head, length])
        at += head + length
    return Walk(places, begin, implicit, -1)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw elements in any order and coding, sometimes truncated or with a wrong length."""
    data = b""
    implicit, tags = draw(st.booleans()), draw(st.lists(TAGS, max_size=8))
    for tag in draw(st.sampled_from([tags, sorted(tags)])):
        vr, value = draw(st.sampled_from([*sorted(VRS), b"??"])), draw(st.binary(max_size=12))
        length = draw(st.just(len(value)) | st.integers(0, 20) | st.just(0xFFFFFFFF))
        explicit = struct.pack("<2s2xL", vr, length) if vr in LONG_VRS else struct.pack("<2sH", vr, length & 0xFFFF)
        head = struct.pack("<L", length) if implicit and tag >> 16 > 2 else explicit
        data += struct.pack("<HH", tag >> 16, tag & 0xFFFF) + head + value
    return data[: draw(st.integers(0, len(data)) | st.just(len(data)))]


@given(files(), st.integers(0, 3))
def test_the_compiled_walk_equals_a_plain_one(data: bytes, at: int) -> None:
    assert walk(memoryview(data), at, WANTED, PIXEL_ELEMENTS[0]) == plain_walk(data, at)


def test_a_file_that_repeats_an_element_many_times_is_not_plain() -> None:
    body = bytes.fromhex("0800600002000000") + b"CT"
    for times, plain in ((5, True), (1000, False)):
        found = walk(memoryview(body * times + b"\xe0\x7f\x10" + bytes(20)), 0, WANTED, PIXEL_ELEMENTS[0])
        assert (found.end >= 0) == plain


RAWS = st.binary(max_size=4) | st.sampled_from(
    [b"", b"CT", b"MR", kinds.CT_IMAGE.encode(), b"MONOCHROME2", b"RGB ", b"ORIGINAL\\PRIMARY\\AXIAL", b"LOCALIZER"]
    + [struct.pack("<H", number) for number in (0, 1, 8, 11, 12, 15, 16, 512, 65535)]
    + [b"1", b"-1024", b"0.7 ", b"nan", b"1e9", b"HU", b"US", b"SIEMENS", b"GE MEDICAL SYSTEMS"]
    + [b"1\\0\\0\\0\\1\\0", b"1\\0\\0\\0\\0\\-1", b"1\\0\\0\\0\\2\\0", b"1\\0\\0\\0\\0.956794\\-0.290765"]
)
CHANGES = st.dictionaries(st.sampled_from(tags.NEEDED_ELEMENTS), RAWS | st.none(), max_size=3)
CT = {
    **{tags.SOP_CLASS: kinds.CT_IMAGE.encode(), tags.MODALITY: b"CT", tags.IMAGE_TYPE: b"ORIGINAL"},
    **{tags.BITS_ALLOCATED: b"\x10\0", tags.BITS_STORED: b"\x0c\0", tags.PIXEL_REPRESENTATION: b"\0\0"},
    **{tags.ROWS: b"\0\2", tags.COLUMNS: b"\0\2", tags.PADDING_VALUE: b"\x30\xf8"},
    **{tags.SLOPE: b"1", tags.INTERCEPT: b"-1024", tags.ORIENTATION: b"1\\0\\0\\0\\1\\0"},
}


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return repr(function(*arguments))
    except Rejected as reason:
        return reason.code, reason.message


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (kinds.require_ct, ("",)),
        (kinds.require_ct, (kinds.CT_IMAGE,)),
        (read_pixel_format, ("little",)),
        (read_pixel_format, ("big",)),
        (facts._read_rescale, ("reject",)),
        (facts._read_rescale, ("identity",)),
        (facts._read_orientation, ()),
        (facts._known_manufacturer, ()),
    ],
)
@given(st.lists(CHANGES, max_size=4))
def test_cached_functions_equal_uncached_ones(
    function: Any, arguments: tuple[str, ...], series: list[dict[int, bytes | None]]
) -> None:
    for changes in (*series, {}):
        values = {tag: raw for tag, raw in (CT | changes).items() if raw is not None}
        assert outcome(function, values, *arguments) == outcome(function.__wrapped__, values, *arguments)

"""This file reads the header of a DICOM file with pydicom: bytes in, the raw values of the needed elements out."""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import data_element_generator, read_dataset

from pipeline.dicom_rules import (
    FRAME_ELEMENTS,
    FRAME_SEQUENCES,
    NEEDED_ELEMENTS,
    PER_FRAME_GROUPS,
    SHARED_GROUPS,
    Rejected,
    text,
)

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)

# The pixel data of a head CT slice begins within 1-8 KB; copying more than this first costs more than parsing it.
QUICK_BYTES = 32 << 10
# Functional groups of 2,000 frames take about 4 MB; more than this before the pixels is no CT.
MAX_HEADER_BYTES = 64 << 20
# 1,000 frames of 512 x 512 take 0.5 GB; a deflated file that unpacks to more is taken for a bomb.
MAX_INFLATED_BYTES = 600 << 20
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_ELEMENTS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where the pixel data element lies.

    Attributes:
        tag: 7FE00010, or 7FE00008 or 7FE00009 for floating-point pixels.
        start: offset of its value in the body.
        length: of its value as stated, bytes; None if it is undefined, as of encapsulated pixels.
    """

    tag: int
    start: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Header:
    """The needed elements of a file, as raw bytes.

    Attributes:
        values: value bytes by tag, in the byte order of the file.
        frames: the same out of the functional groups, one mapping a frame; empty in a classic file.
        little_endian: byte order of numbers in `values` and of native pixels.
        transfer_syntax: UID of the coding.
        media_class: SOP class as the file meta information has it, or "".
        body: the bytes that `pixels` counts in: the file's, or the inflated data set.
        pixels: the pixel data element, or None.
    """

    values: Mapping[int, bytes]
    frames: tuple[Mapping[int, bytes], ...]
    little_endian: bool
    transfer_syntax: str
    media_class: str
    body: memoryview
    pixels: Pixels | None


def read_header(data: memoryview) -> Header:
    """Read the header of a DICOM file, with or without preamble, in any transfer syntax.

    Raises:
        Rejected: the bytes are no DICOM file, or its header cannot be read.
    """
    with _quiet_pydicom():
        try:
            return _read_header(data)
        except (Rejected, MemoryError):
            raise
        except Exception as error:
            raise Rejected("damaged_header", f"the header cannot be read ({type(error).__name__})") from None


def coded_frames(header: Header, num_frames: int) -> Iterator[bytes]:
    """Yield the code stream of each frame out of encapsulated pixel data.

    Raises:
        Rejected: the fragments hold no further frame.

    Source: DICOM PS3.5 A.4 (encapsulation; fragments, Basic Offset Table).
    """
    assert header.pixels is not None
    with _quiet_pydicom():
        try:
            yield from generate_frames(bytes(header.body[header.pixels.start :]), number_of_frames=num_frames)
        except Exception as error:
            raise Rejected("truncated", f"no complete code stream of the frame ({type(error).__name__})") from None


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from checking values and quoting them: a warning would print what may be patient data."""
    logger, settings = logging.getLogger("pydicom"), config.settings
    disabled, mode = logger.disabled, settings.reading_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled, settings.reading_validation_mode = True, config.IGNORE
        try:
            yield
        finally:
            logger.disabled, settings.reading_validation_mode = disabled, mode


def _read_header(data: memoryview) -> Header:
    has_preamble = data[128:132] == b"DICM"
    begin = 132 if has_preamble else 0
    if not has_preamble and bytes(data[:2]) not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        raise Rejected("not_dicom", "neither a DICOM preamble nor a DICOM data set")
    meta, begin = _read_meta(data, begin)
    syntax = text(meta.get(0x00020010, b"")) or _guess_syntax(data, begin)
    body = _inflate(data[begin:]) if syntax == DEFLATED else data
    begin = 0 if syntax == DEFLATED else begin
    elements, end, implicit = _read_elements(body, begin, syntax)
    values = _raw_values(elements)
    if not has_preamble and not values.keys() & {0x00080016, 0x00080018, 0x00080060}:
        raise Rejected("not_dicom", "neither a DICOM preamble nor a DICOM data set")
    return Header(
        values=values,
        frames=tuple(_frame_groups(elements)),
        little_endian=syntax != EXPLICIT_BIG,
        transfer_syntax=syntax,
        media_class=text(meta.get(0x00020002, b"")),
        body=body,
        pixels=_find_pixels(body, end, implicit, syntax != EXPLICIT_BIG),
    )


def _read_meta(data: memoryview, begin: int) -> tuple[dict[int, bytes], int]:
    """Read the file meta information, always Explicit VR Little Endian, and where the data set begins.

    Source: DICOM PS3.10, 7.1.
    """
    stream = BytesIO(data[begin : begin + QUICK_BYTES])
    elements = data_element_generator(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    meta = {int(element.tag): element.value for element in elements if isinstance(element.value, bytes)}
    return meta, begin + stream.tell()


def _guess_syntax(data: memoryview, begin: int) -> str:
    """Tell the transfer syntax of a file without file meta information from its first element."""
    first = bytes(data[begin : begin + 6])
    if not first[4:].isalpha():
        return IMPLICIT_LITTLE
    return EXPLICIT_BIG if first[:1] == b"\0" else EXPLICIT_LITTLE


def _inflate(deflated: memoryview) -> memoryview:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(deflated, MAX_INFLATED_BYTES)
    except zlib.error:
        raise Rejected("damaged_header", "the deflated data set cannot be inflated") from None
    if inflater.unconsumed_tail:
        raise Rejected("too_large", f"the data set inflates to more than {MAX_INFLATED_BYTES >> 20} MB")
    return memoryview(inflated)


def _read_elements(body: memoryview, begin: int, syntax: str) -> tuple[Mapping[int, Any], int, bool]:
    """Return the elements before the pixel data, where they end, and whether they are in Implicit VR."""
    implicit, little = syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG
    if bytes(body[begin + 4 : begin + 6]).isalpha() != implicit:
        stream = BytesIO(body[begin : begin + QUICK_BYTES])
        reached: list[int] = []

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            if tag in _PIXEL_ELEMENTS:
                reached.append(tag)
            return bool(reached)

        try:
            generator = data_element_generator(stream, implicit, little, at_pixels, specific_tags=NEEDED_ELEMENTS)
            elements = {int(element.tag): element for element in generator}
        except Exception:
            reached.clear()  # cut off in the middle of a sequence, or damaged: the long way tells
        if reached:
            return elements, begin + stream.tell(), implicit
    return _read_all_elements(body, begin, implicit, little)


def _read_all_elements(
    body: memoryview, begin: int, implicit: bool, little: bool
) -> tuple[Mapping[int, Any], int, bool]:
    """The same as `_read_elements` for what is not plain: a long header, none of pixels, a coding that is not as stated."""
    stream = BytesIO(body[begin : begin + MAX_HEADER_BYTES])
    dataset = read_dataset(stream, implicit, little, stop_when=lambda tag, vr, length: tag in _PIXEL_ELEMENTS)
    implicit = bool(dataset.original_encoding[0])
    elements = {tag: dataset.get_item(tag) for tag in NEEDED_ELEMENTS if tag in dataset}
    return elements, begin + stream.tell(), implicit


def _raw_values(elements: Mapping[int, Any]) -> dict[int, bytes]:
    """Value bytes by tag; of a sequence only that it is there."""
    raw = {}
    for tag, element in elements.items():
        value = element.value
        raw[tag] = value if isinstance(value, bytes) else b"" if value is None else b"sequence"
    return raw


def _frame_groups(elements: Mapping[int, Any]) -> Iterator[dict[int, bytes]]:
    """Yield for each frame the needed values out of its functional groups, the shared ones first.

    Source: DICOM PS3.3 C.7.6.16 (Multi-frame Functional Groups).
    """
    if PER_FRAME_GROUPS not in elements:
        return
    shared = [_group_values(item) for item in _items(elements, SHARED_GROUPS)]
    common = shared[0] if shared else {}
    for item in _items(elements, PER_FRAME_GROUPS):
        yield common | _group_values(item)


def _items(elements: Mapping[int, Any], tag: int) -> Iterable[Dataset]:
    if tag not in elements:
        return ()
    return Dataset({tag: elements[tag]})[tag].value or ()


def _group_values(group: Dataset) -> dict[int, bytes]:
    values = {}
    for sequence in FRAME_SEQUENCES:
        for item in group[sequence].value[:1] if sequence in group else ():
            values |= _raw_values({tag: item.get_item(tag) for tag in FRAME_ELEMENTS if tag in item})
    return values


def _find_pixels(body: memoryview, at: int, implicit: bool, little: bool) -> Pixels | None:
    """Read the element header at `at`, if pixel data begin there."""
    endian = "<" if little else ">"
    head = bytes(body[at : at + 12])
    if len(head) < 8:
        return None
    group, element = struct.unpack_from(endian + "HH", head)
    tag = group << 16 | element
    if tag not in _PIXEL_ELEMENTS:
        return None
    if implicit or head[4:6] not in _LONG_VRS:
        (length,), size = struct.unpack_from(endian + ("L" if implicit else "xxH"), head, 4), 8
    elif len(head) == 12:
        (length,), size = struct.unpack_from(endian + "L", head, 8), 12
    else:
        return None
    return Pixels(tag, at + size, None if length == _UNDEFINED_LENGTH else length)

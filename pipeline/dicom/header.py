"""Read the header of a DICOM file with pydicom: bytes in, the raw values of the needed elements out."""

import logging
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import Tag

from pipeline.dicom.codecs import require_decoder
from pipeline.dicom.rejects import Rejected
from pipeline.dicom.tags import (
    FRAME_ELEMENTS,
    FRAME_SEQUENCES,
    MODALITY,
    NEEDED_ELEMENTS,
    PER_FRAME_GROUPS,
    PIXEL_DATA,
    SHARED_GROUPS,
    SOP_CLASS,
    SOP_INSTANCE,
)
from pipeline.dicom.values import text
from pipeline.dicom.walk import LONG_VRS, Walk, walk

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)

# The functional groups of 2,000 frames take about 4 MB; no CT file has more than this before its pixels.
MAX_HEADER_BYTES = 64 << 20
# 1,000 frames of 512 x 512 take 0.5 GB, and CT deflates to a third or a half of its size. A file that exceeds the size,
# or the ratio once it inflates to RATIO_MATTERS_BYTES, is a decompression bomb.
MAX_INFLATED_BYTES, MAX_RATIO, RATIO_MATTERS_BYTES = 600 << 20, 100, 16 << 20
_PIECE_BYTES = 16 << 10
TRANSFER_SYNTAX, MEDIA_STORAGE_SOP_CLASS = 0x00020010, 0x00020002
PIXEL_ELEMENTS = (0x7FE00008, 0x7FE00009, PIXEL_DATA)
_WANTED = np.array([TRANSFER_SYNTAX, MEDIA_STORAGE_SOP_CLASS, *NEEDED_ELEMENTS])
_UNDEFINED_LENGTH = 0xFFFFFFFF


class Pixels(NamedTuple):
    """The location of the pixel data element.

    Attributes:
        tag: 7FE00010, or 7FE00008 or 7FE00009 for floating-point pixels.
        start: offset of its value in the body.
        length: stated length of its value in bytes; None if it is undefined, as for encapsulated pixels.
    """

    tag: int
    start: int
    length: int | None


class Header(NamedTuple):
    """The needed elements of a file, as raw bytes.

    Attributes:
        values: value bytes by tag, in the byte order of the file; including those of the shared functional groups.
        frames: for each frame, the values in its own functional groups, which override `values`; empty if the file
            has none.
        little_endian: whether numbers in `values` and native pixels are little-endian.
        transfer_syntax: UID.
        media_class: SOP class in the file meta information, or "".
        body: the bytes that the offsets in `pixels` refer to: the file, or the inflated data set.
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
        Rejected: the bytes are not a DICOM file, or its header cannot be read.
    """
    try:
        return _read_header(data)
    except (Rejected, MemoryError):
        raise
    except Exception as error:
        raise Rejected("damaged_header", f"the header cannot be read ({type(error).__name__})") from None


def coded_frames(header: Header, num_frames: int) -> Iterator[bytes]:
    """Yield the code stream of each frame of encapsulated pixel data.

    Raises:
        Rejected: the fragments of the next frame are incomplete.

    Source: DICOM PS3.5 A.4 (encapsulation; fragments, Basic Offset Table).
    """
    assert header.pixels is not None
    frames = generate_frames(bytes(header.body[header.pixels.start :]), number_of_frames=num_frames)
    while (code := _next_code(frames)) is not None:
        yield code


def _next_code(frames: Iterator[bytes]) -> bytes | None:
    with _quiet_pydicom():
        try:
            return next(frames, None)
        except Exception as error:
            raise Rejected("truncated", f"no complete code stream for the frame ({type(error).__name__})") from None


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Disable pydicom's validation, warnings and log messages, as they quote values that may be patient data."""
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
    has_preamble = bytes(data[128:132]) == b"DICM"
    begin = 132 if has_preamble else 0
    if not has_preamble and bytes(data[:2]) not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        raise Rejected("not_dicom", "neither a DICOM preamble nor a DICOM data set")
    found = walk(data, begin, _WANTED, PIXEL_ELEMENTS[0])
    meta, begin = (_values_at(found, data), found.begin) if found.begin >= 0 else _read_meta(data, begin)
    syntax = text(meta.get(TRANSFER_SYNTAX, b"")) or _guess_syntax(data, begin)
    body, begin = (_inflate(data[begin:]), 0) if syntax == DEFLATED else (data, begin)
    plain = (meta, (), found.end, found.implicit) if _is_complete(found, meta, data, syntax) else None
    try:
        values, frames, end, implicit = plain or _read_elements(body, begin, syntax)
    except Exception:
        if syntax not in NATIVE:  # an unsupported transfer syntax may be the reason
            require_decoder(syntax)
        raise
    if not has_preamble and not values.keys() & {SOP_CLASS, SOP_INSTANCE, MODALITY}:
        raise Rejected("not_dicom", "neither a DICOM preamble nor a DICOM data set")
    return Header(
        values=values,
        frames=frames,
        little_endian=syntax != EXPLICIT_BIG,
        transfer_syntax=syntax,
        media_class=text(meta.get(MEDIA_STORAGE_SOP_CLASS, b"")),
        body=body,
        pixels=_find_pixels(body, end, implicit=implicit, little=syntax != EXPLICIT_BIG),
    )


def _values_at(found: Walk, data: memoryview) -> Mapping[int, bytes]:
    head = bytes(data[: max(found.begin, found.end)])
    return {tag: head[start : start + length] for tag, start, length in found.places}


def _is_complete(found: Walk, values: Mapping[int, bytes], data: memoryview, syntax: str) -> bool:
    """Return whether the walk, which takes 10 us, makes reading with pydicom, which takes 100 to 300, unnecessary."""
    if found.end < 0 or syntax in (EXPLICIT_BIG, DEFLATED) or found.implicit != (syntax == IMPLICIT_LITTLE):
        return False
    group, element = unpack_from("<HH", data, found.end)
    nested = PER_FRAME_GROUPS in values or SHARED_GROUPS in values
    return group << 16 | element in PIXEL_ELEMENTS and not nested


def _read_meta(data: memoryview, begin: int) -> tuple[Mapping[int, bytes], int]:
    """Return the file meta information, which is always Explicit VR Little Endian, and the offset of the data set.

    Source: DICOM PS3.10 7.1.
    """
    stream = BytesIO(data[begin : begin + MAX_HEADER_BYTES])
    with _quiet_pydicom():
        elements = data_element_generator(
            stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2
        )
        return {int(element.tag): _raw_value(element) for element in elements}, begin + stream.tell()


def _guess_syntax(data: memoryview, begin: int) -> str:
    """Guess the transfer syntax of a file that does not state it, from its first element."""
    first = bytes(data[begin : begin + 6])
    if not first[4:].isalpha():
        return IMPLICIT_LITTLE
    return EXPLICIT_BIG if first[:1] == b"\0" else EXPLICIT_LITTLE


def _inflate(deflated: memoryview) -> memoryview:
    """Inflate a data set; a large one twice, so that its size is known before memory is allocated.

    Raises:
        Rejected: it is damaged or inflates to more than the limits.
    """
    limit = min(MAX_INFLATED_BYTES, max(RATIO_MATTERS_BYTES, MAX_RATIO * len(deflated)))
    pieces, size = [], 0
    for piece in _inflated(deflated):
        size += len(piece)
        if size > limit:
            raise Rejected("too_large", f"the data set inflates to more than {limit >> 20} MB")
        if size <= RATIO_MATTERS_BYTES:
            pieces.append(piece)
    body, at = bytearray(size), 0
    for piece in pieces if size <= RATIO_MATTERS_BYTES else _inflated(deflated):
        body[at : at + len(piece)] = piece
        at += len(piece)
    return memoryview(body)


def _inflated(deflated: memoryview) -> Iterator[bytes]:
    """Yield the inflated data set in pieces of at most 17 MB, as a byte inflates to at most 1,032."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for at in range(0, len(deflated), _PIECE_BYTES):
            yield inflater.decompress(deflated[at : at + _PIECE_BYTES])
    except zlib.error:
        raise Rejected("damaged_header", "the deflated data set cannot be inflated") from None


def _read_elements(
    body: memoryview, begin: int, syntax: str
) -> tuple[Mapping[int, bytes], tuple[Mapping[int, bytes], ...], int, bool]:
    """Return `Header.values`, `Header.frames`, the offset of the pixel data, and whether this is Implicit VR."""
    implicit, little = syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG
    stream = BytesIO(body[begin : begin + MAX_HEADER_BYTES])
    with _quiet_pydicom():
        dataset = read_dataset(stream, implicit, little, stop_when=lambda tag, vr, length: tag in PIXEL_ELEMENTS)
        elements = {tag: dataset.get_item(tag) for tag in NEEDED_ELEMENTS if tag in dataset}
        values = {tag: _raw_value(element) for tag, element in elements.items()}
        shared = [_group_values(item) for item in _items(elements, SHARED_GROUPS)]
        values |= shared[0] if shared else {}
        frames = tuple(map(_group_values, _items(elements, PER_FRAME_GROUPS)))
    return values, frames, begin + stream.tell(), bool(dataset.original_encoding[0])


def _raw_value(element: Any) -> bytes:
    """Return the value of a pydicom element as bytes; for a sequence, b"sequence" unless it is empty."""
    value = element.value
    if isinstance(value, bytes):
        return value
    return b"sequence" if any(len(item) for item in value or ()) else b""


def _items(elements: Mapping[int, Any], tag: int) -> Iterable[Dataset]:
    return Dataset({Tag(tag): elements[tag]})[tag].value or () if tag in elements else ()


def _group_values(group: Dataset) -> dict[int, bytes]:
    """Return the needed values of a frame's functional groups, or of the shared ones.

    Source: DICOM PS3.3 C.7.6.16 (Multi-frame Functional Groups).
    """
    values: dict[int, bytes] = {}
    for sequence in FRAME_SEQUENCES:
        for item in group[sequence].value[:1] if sequence in group else ():
            values |= {tag: _raw_value(item.get_item(tag)) for tag in FRAME_ELEMENTS if tag in item}
    return values


def _find_pixels(body: memoryview, at: int, *, implicit: bool, little: bool) -> Pixels | None:
    """Locate the pixel data whose element starts at offset `at`; None if another element, or none, starts there."""
    endian = "<" if little else ">"
    head = bytes(body[at : at + 12])
    if len(head) < 8:
        return None
    group, element = unpack_from(endian + "HH", head)
    tag = group << 16 | element
    if tag not in PIXEL_ELEMENTS:
        return None
    if implicit or head[4:6] not in LONG_VRS:
        (length,), size = unpack_from(endian + ("L" if implicit else "xxH"), head, 4), 8
    elif len(head) == 12:
        (length,), size = unpack_from(endian + "L", head, 8), 12
    else:
        return None
    return Pixels(tag, at + size, None if length == _UNDEFINED_LENGTH else length)

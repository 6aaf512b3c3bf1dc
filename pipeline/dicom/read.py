"""Turn the bytes of a DICOM file into CT slices, or into the reason why they are none."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

from pipeline.dicom.codecs import decode_frame, is_lossy, require_decoder
from pipeline.dicom.header import EXPLICIT_BIG, NATIVE, Header, Pixels, coded_frames, read_header
from pipeline.dicom.records import Reject, Slice, SliceRecord
from pipeline.dicom.repair import unwrap_12_bits
from pipeline.dicom.rules import (
    PIXEL_DATA,
    POSITION,
    FileFacts,
    FrameFacts,
    PixelFormat,
    Rejected,
    read_file_facts,
    read_frame_facts,
    require_ct,
)
from pipeline.planning.catalog import Reading

_CELLS = {
    (little, size): np.dtype(f"{'<' if little else '>'}u{size}") for little in (True, False) for size in (1, 2, 4)
}


@dataclass(frozen=True, slots=True)
class Slices:
    """The frames of one file; iterating decodes them one after another, once.

    Attributes:
        num_frames: of the whole file, as its header states; 1 where the file gives no slice.
        items: a Slice or a Reject for each frame that was asked for, or a single Reject for the whole file.
    """

    num_frames: int
    items: Iterator[Slice | Reject]

    def __iter__(self) -> Iterator[Slice | Reject]:
        return self.items


def read_slices(
    data: memoryview | bytes,
    reading: Reading,
    patient_key: bytes | None,
    frames: tuple[int, int] | None = None,
) -> Slices:
    """Read a DICOM file's header now, and each frame when the result is iterated.

    Stored values of an uncompressed file are a view of `data`, which must not change while they are used.
    HU = stored x slope + intercept is never rounded on the way.

    Args:
        data: the whole file.
        reading: the catalog's policies.
        patient_key: up to 64 bytes that key the hash of PatientID; None where the catalog keeps PatientID.
        frames: the part to read, (first, stop) counted from 0; None for all.
    """
    try:
        header = read_header(memoryview(data))
        require_ct(header.values, header.media_class)
        if header.pixels is None:
            raise Rejected("no_pixels", "no pixel data")
        if header.pixels.tag != PIXEL_DATA:
            raise Rejected("pixel_format", "Float Pixel Data: floating-point pixels")
        facts = read_file_facts(header.values, little_endian=header.little_endian)
        _require_room(header, header.pixels, facts)
    except Rejected as reason:
        return Slices(1, iter((Reject(reason.code, reason.message),)))
    first, stop = frames or (0, facts.num_frames)
    wanted = range(first, min(stop, facts.num_frames))
    return Slices(facts.num_frames, _read_frames(header, facts, reading, patient_key, wanted))


def _read_frames(
    header: Header, facts: FileFacts, reading: Reading, patient_key: bytes | None, wanted: range
) -> Iterator[Slice | Reject]:
    codes = iter(()) if header.transfer_syntax in NATIVE else coded_frames(header, facts.num_frames)
    for index in range(wanted.stop):
        try:
            code = next(codes, None)
            if index in wanted:
                yield _read_frame(header, facts, reading, patient_key, index, code=code)
        except Rejected as reason:
            if index in wanted:
                yield Reject(reason.code, reason.message, _frame_number(facts, index))


def _frame_number(facts: FileFacts, index: int) -> int:
    return index + 1 if facts.num_frames > 1 else 0


def _require_room(header: Header, pixels: Pixels, facts: FileFacts) -> None:
    """Check that the pixel data can hold what the header says, before anything is allocated for them."""
    held = len(header.body) - pixels.start
    # One byte is what pads to an even length, and what some writers leave out.
    if pixels.length is not None and pixels.length > held + 1:
        raise Rejected("truncated", f"the pixel data hold {held} of the {pixels.length} bytes that they should")
    if header.transfer_syntax in NATIVE:
        if pixels.length is None:
            raise Rejected("damaged_header", "encapsulated pixel data in an uncompressed transfer syntax")
        if header.transfer_syntax == EXPLICIT_BIG and facts.pixels.bits_allocated == 8:
            raise Rejected("pixel_format", "8-bit pixels in big-endian words")
        held = min(held, pixels.length)
        needed = facts.num_frames * facts.pixels.frame_bytes
    else:
        require_decoder(header.transfer_syntax)
        needed = facts.num_frames * 8  # each frame has an item with a header of 8 bytes
    if held < needed:
        raise Rejected("truncated", f"the pixel data hold {held} of {needed} bytes")


def _read_frame(
    header: Header, facts: FileFacts, reading: Reading, patient_key: bytes | None, index: int, *, code: bytes | None
) -> Slice:
    frame_facts, pixels = _frame_facts(header, facts, reading, index), facts.pixels
    stored = _stored_values(_read_cells(header, pixels, index, code), pixels)
    signed, repair = stored.dtype.kind == "i", ""
    if reading.repair == "rsna_12bit_wrap" and _has_wrapped(pixels, frame_facts):
        stored, signed, repair = unwrap_12_bits(stored, int(frame_facts.intercept)), True, reading.repair
    record = SliceRecord(
        frame=_frame_number(facts, index),
        sop_instance_uid=facts.sop_instance_uid,
        patient_id=_identify_patient(facts.patient, facts.study_instance_uid, reading.patient_ids, patient_key),
        patient_from_study=not facts.patient,
        study_instance_uid=facts.study_instance_uid,
        series_instance_uid=facts.series_instance_uid,
        position=frame_facts.position,
        orientation=frame_facts.orientation,
        slice_location=facts.slice_location if facts.num_frames == 1 else None,
        instance_number=facts.instance_number if facts.num_frames == 1 else index + 1,
        height=pixels.height,
        width=pixels.width,
        slope=frame_facts.slope,
        intercept=frame_facts.intercept,
        bits_stored=min(pixels.bits_stored, 16),
        signed=signed,
        transfer_syntax=header.transfer_syntax,
        lossy=is_lossy(header.transfer_syntax, facts.lossy_flag),
        manufacturer=facts.manufacturer,
        repair=repair,
        image_kind=frame_facts.image_kind,
        pixel_digest=_digest_pixels(stored, frame_facts.slope, frame_facts.intercept, pixels.padding),
    )
    return Slice(record, stored, pixels.padding)


def _frame_facts(header: Header, facts: FileFacts, reading: Reading, index: int) -> FrameFacts:
    values = header.values
    if header.frames:
        if index >= len(header.frames):
            raise Rejected("damaged_header", "no functional groups for the frame")
        values = {**values, **header.frames[index]}
    elif facts.num_frames > 1:
        # One position for several frames places none of them; their order does.
        values = {tag: value for tag, value in values.items() if tag != POSITION}
    return read_frame_facts(values, reading.missing_rescale)


def _read_cells(header: Header, pixels: PixelFormat, index: int, code: bytes | None) -> np.ndarray:
    """Return the (H, W) uint16 or uint32 cells of a frame, unused high bits as they are."""
    size_bytes = pixels.bits_allocated // 8
    if header.transfer_syntax not in NATIVE:
        if code is None:
            raise Rejected("truncated", "no code stream for the frame")
        return decode_frame(code, header.transfer_syntax, pixels)
    assert header.pixels is not None
    start = header.pixels.start + index * pixels.height * pixels.width * size_bytes
    shape, dtype = (pixels.height, pixels.width), _CELLS[header.little_endian, size_bytes]
    cells: np.ndarray = np.ndarray(shape, dtype, header.body, start)
    return cells.astype(np.uint32 if size_bytes == 4 else np.uint16, copy=not cells.flags.aligned)


def _stored_values(cells: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Drop the bits above BitsStored and apply the sign; a view where that changes nothing.

    Cells that are padding by their full 16 bits keep them: masked, -2000 in 12 unsigned bits would become bone.
    """
    if cells.dtype.itemsize == 4:
        return _narrow(cells, pixels)
    signed_cells = cells.view(np.int16) if pixels.signed else cells
    if pixels.bits_stored == 16:
        return signed_cells
    high = 1 << (pixels.bits_stored - pixels.signed)
    if signed_cells.max() < high and (not pixels.signed or signed_cells.min() >= -high):
        return signed_cells
    unused = 16 - pixels.bits_stored
    stored = (cells << unused).view(signed_cells.dtype) >> unused
    if pixels.padding is not None:
        is_padding = (signed_cells >= pixels.padding[0]) & (signed_cells <= pixels.padding[1])
        stored[is_padding] = signed_cells[is_padding]
    return stored


def _narrow(cells: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Bring values out of 32 bits into 16 of either sign.

    Raises:
        Rejected: they do not fit.
    """
    unused = 32 - pixels.bits_stored
    values = (cells << unused).view(np.int32 if pixels.signed else np.uint32) >> unused
    low, high = values.min(), values.max()
    for dtype in (np.int16, np.uint16) if pixels.signed else (np.uint16,):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    raise Rejected("pixel_format", "values in 32 bits that do not fit 16")


def _has_wrapped(pixels: PixelFormat, frame: FrameFacts) -> bool:
    """Tell a file whose HU were stored modulo 4096: 12 bits without sign and no intercept leave no room for air."""
    return not pixels.signed and pixels.bits_stored == 12 and frame.slope == 1 and frame.intercept in (0, 1)


@lru_cache(maxsize=256)  # the slices of a series share it
def _identify_patient(patient: str, study_instance_uid: str, patient_ids: str, patient_key: bytes | None) -> str:
    """Return what stands for the patient; the study does where PatientID is empty."""
    patient = patient or f"study:{study_instance_uid}"
    if patient_ids == "keep":
        return patient.encode("unicode_escape").decode("ascii")
    if not patient_key:
        raise ValueError("hashing patient identifiers needs a key")
    return hashlib.blake2b(patient.encode(), key=patient_key, digest_size=16).hexdigest()


def _digest_pixels(stored: np.ndarray, slope: float, intercept: float, padding: tuple[int, int] | None) -> str:
    digest = xxhash.xxh3_128(np.ascontiguousarray(stored).data)
    low, high = padding or (0, -1)
    digest.update(struct.pack("<2I2s2d2i", *stored.shape, stored.dtype.kind.encode(), slope, intercept, low, high))
    return digest.hexdigest()

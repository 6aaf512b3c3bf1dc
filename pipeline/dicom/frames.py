"""Turn the frames of a CT file into slices with their records, or into rejects."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

from pipeline.dicom.codecs import is_lossy
from pipeline.dicom.facts import FileFacts, FrameFacts, read_frame_facts
from pipeline.dicom.header import NATIVE, Header, coded_frames
from pipeline.dicom.pixel_format import PixelFormat
from pipeline.dicom.pixels import digest_pixels, read_stored
from pipeline.dicom.records import Reject, Slice, SliceRecord
from pipeline.dicom.rejects import Rejected
from pipeline.dicom.tags import POSITION
from pipeline.dicom.unwrap import unwrap_12_bits
from pipeline.planning.catalog import Reading


def read_frames(
    header: Header, facts: FileFacts, reading: Reading, patient_key: bytes | None, wanted: range
) -> Iterator[Slice | Reject]:
    """Decode the wanted frames one by one.

    Args:
        header: of the file.
        facts: of the file.
        reading: the catalog's policies.
        patient_key: as for `read.read_slices`.
        wanted: indices of frames, counted from 0.
    """
    patient_id = _identify_patient(facts.patient, facts.study_instance_uid, reading.patient_ids, patient_key)
    codes = iter(()) if header.transfer_syntax in NATIVE else coded_frames(header, facts.num_frames)
    for index in range(wanted.stop):
        try:
            code = next(codes, None)
            if index in wanted:
                yield _read_frame(header, facts, reading, patient_id, (index, code))
        except Rejected as reason:
            if index in wanted:
                yield Reject(reason.code, reason.message, _frame_number(facts, index))


def _read_frame(
    header: Header, facts: FileFacts, reading: Reading, patient_id: str, frame: tuple[int, bytes | None]
) -> Slice:
    """Decode one frame, given by its index and its compressed code, if it has one."""
    index, code = frame
    frame_facts, pixels = _frame_facts(header, facts, reading, index), facts.pixels
    stored = read_stored(header, pixels, index, code)
    signed, repair = stored.dtype.kind == "i", ""
    if reading.repair == "rsna_12bit_wrap" and _has_wrapped(pixels, frame_facts):
        stored, signed, repair = unwrap_12_bits(stored, int(frame_facts.intercept)), True, reading.repair
    record = SliceRecord(
        frame=_frame_number(facts, index),
        sop_instance_uid=facts.sop_instance_uid,
        patient_id=patient_id,
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
        pixel_digest=digest_pixels(stored, frame_facts.slope, frame_facts.intercept, pixels.padding),
    )
    return Slice(record, stored, pixels.padding)


def _frame_facts(header: Header, facts: FileFacts, reading: Reading, index: int) -> FrameFacts:
    values = header.values
    if header.frames:
        if index >= len(header.frames):
            raise Rejected("damaged_header", "no functional groups for the frame")
        values = {**values, **header.frames[index]}
    elif facts.num_frames > 1:
        # A position that several frames share does not place them; their order does.
        values = {tag: value for tag, value in values.items() if tag != POSITION}
    return read_frame_facts(values, reading.missing_rescale)


def _frame_number(facts: FileFacts, index: int) -> int:
    return index + 1 if facts.num_frames > 1 else 0


def _has_wrapped(pixels: PixelFormat, frame: FrameFacts) -> bool:
    """Return whether HU were stored modulo 4096: 12 unsigned bits without an intercept cannot represent air."""
    return not pixels.signed and pixels.bits_stored == 12 and frame.slope == 1 and frame.intercept in (0, 1)


@lru_cache(maxsize=256)  # the same for all slices of a series
def _identify_patient(patient: str, study_instance_uid: str, patient_ids: str, patient_key: bytes | None) -> str:
    """Return the identifier of the patient, hashed or escaped; the study replaces an empty PatientID."""
    patient = patient or f"study:{study_instance_uid}"
    if patient_ids == "keep":
        return patient.encode("unicode_escape").decode("ascii")
    if not patient_key:
        raise ValueError("hashing patient identifiers needs a key")
    return hashlib.blake2b(patient.encode(), key=patient_key, digest_size=16).hexdigest()

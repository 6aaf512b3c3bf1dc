"""The records that the steps hand on: a slice that was accepted, a file that was not.

Those that are made for every slice are named tuples: a frozen dataclass of twenty fields takes four times as long.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class SliceRecord(NamedTuple):
    """What is kept of one slice beside its pixels; nothing else leaves the DICOM file.

    Attributes:
        frame: 0 for a single-frame file, else counts from 1.
        patient_id: already hashed, unless the catalog says `patient_ids: keep`.
        patient_from_study: PatientID was empty, so the study stands for the patient.
        position: ImagePositionPatient, mm, or None.
        orientation: ImageOrientationPatient, row then column direction cosines, or None.
        slice_location: mm, or None.
        instance_number: or None.
        height, width: of the native frame, pixels.
        slope, intercept: HU = stored x slope + intercept.
        bits_stored, signed: of the stored values.
        transfer_syntax: UID of the coding.
        lossy: whether the pixels ever went through lossy coding, as far as the file tells.
        manufacturer: a word from a known list, or "other"; never free text.
        repair: name of the repair that was applied, or "".
        image_kind: a word from `kinds.IMAGE_KINDS` where ImageType names such an image, else "".
        pixel_digest: xxh3-128 hex over stored values, slope, intercept and padding: equal digest, equal HU.
    """

    frame: int
    sop_instance_uid: str
    patient_id: str
    patient_from_study: bool
    study_instance_uid: str
    series_instance_uid: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    slice_location: float | None
    instance_number: int | None
    height: int
    width: int
    slope: float
    intercept: float
    bits_stored: int
    signed: bool
    transfer_syntax: str
    lossy: bool
    manufacturer: str
    repair: str
    image_kind: str
    pixel_digest: str


class Slice(NamedTuple):
    """One decoded slice.

    Attributes:
        record: what is kept of it.
        stored: (H, W) int16 or uint16 stored values, C order, bits above bits_stored removed; it may be a view
            of the reader's buffer, so it is good only until the next read.
        padding: inclusive range of stored values that are no tissue (PixelPaddingValue), or None.
    """

    record: SliceRecord
    stored: np.ndarray
    padding: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Reject:
    """A file, or one frame of it, that gave no slice.

    Attributes:
        code: a word from `REJECT_CODES`.
        message: one sentence without patient data.
        frame: 0 for the whole file, else the frame.
    """

    code: str
    message: str
    frame: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """One place in a shard's plan: a file, or a range of frames of a file that does not fit one shard.

    Attributes:
        slot: place in the plan of the shard.
        why: why it is read, in a few words, for `pipeline why`.
        first, stop: frames counted from 0, stop excluded; stop 0 means the whole file.
        digest: xxh3-128 hex of the content that the frames were counted from, "" for a whole file.
    """

    slot: int
    path: str
    why: str = ""
    first: int = 0
    stop: int = 0
    digest: str = ""

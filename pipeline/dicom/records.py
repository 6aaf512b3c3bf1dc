"""The records of slices, rejects and planned files that the steps of a build exchange.

Those that are created for each slice are named tuples: a frozen dataclass with twenty fields takes four times as long.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class SliceRecord(NamedTuple):
    """The metadata of one slice. Apart from pixels, nothing else leaves the DICOM file.

    Attributes:
        frame: 0 for a single-frame file, else counted from 1.
        patient_id: hashed, unless the catalog says `patient_ids: keep`.
        patient_from_study: whether PatientID was empty, so that patient_id was derived from the study.
        position: ImagePositionPatient, mm, or None.
        orientation: ImageOrientationPatient, row then column direction cosines, or None.
        slice_location: mm, or None.
        instance_number: or None.
        height, width: of the native frame, pixels.
        slope, intercept: HU = stored x slope + intercept.
        bits_stored, signed: of the stored values.
        transfer_syntax: UID.
        lossy: whether the pixels were ever compressed lossily, as far as the file says.
        manufacturer: a name from `facts.MANUFACTURERS`, or "other"; never free text.
        repair: name of the repair that was applied, or "".
        image_kind: a word from `kinds.IMAGE_KINDS` if ImageType says so, else "".
        pixel_digest: xxh3-128 (hex) of stored values, slope, intercept and padding; slices with equal digests have
            equal HU.
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
        record: its metadata.
        stored: (H, W) int16 or uint16 stored values, C order, without the bits above bits_stored except in padding. It
            may be a view of the reader's buffer, and is then valid only until the next read.
        padding: inclusive range of stored values that are not tissue (PixelPaddingValue), or None.
    """

    record: SliceRecord
    stored: np.ndarray
    padding: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Reject:
    """A file, or one frame of it, that gave no slice.

    Attributes:
        code: a key of `REJECT_CODES`.
        message: the reason, without patient data.
        frame: 0 for the whole file, else the frame, counted from 1.
    """

    code: str
    message: str
    frame: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """One item of a shard's plan: a file, or a range of frames if the file does not fit one shard.

    Attributes:
        slot: index in the plan of the shard.
        path: of the file in the source.
        why: reason for reading it, in a few words, for `pipeline why`.
        first, stop: range of frames, counted from 0, stop excluded; stop 0 means the whole file.
        digest: xxh3-128 (hex) of the content whose frames were counted; "" for a whole file.
    """

    slot: int
    path: str
    why: str = ""
    first: int = 0
    stop: int = 0
    digest: str = ""

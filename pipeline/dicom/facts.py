"""Decide from a header whether a file holds CT slices, and what its values mean."""

import math
import re
from typing import Literal, NamedTuple

from pipeline.dicom.header import Header
from pipeline.dicom.kinds import image_kind, require_ct, require_slice_type
from pipeline.dicom.pixel_format import PixelFormat, read_pixel_format
from pipeline.dicom.pixels import require_room
from pipeline.dicom.rejects import Rejected
from pipeline.dicom.tags import (
    FRAME_TYPE,
    IMAGE_TYPE,
    INSTANCE_NUMBER,
    INTERCEPT,
    LOSSY,
    MANUFACTURER,
    MODALITY_LUT,
    NUMBER_OF_FRAMES,
    ORIENTATION,
    PATIENT_ID,
    PIXEL_DATA,
    POSITION,
    RESCALE_TYPE,
    SERIES_INSTANCE,
    SLICE_LOCATION,
    SLOPE,
    SOP_INSTANCE,
    STUDY_INSTANCE,
)
from pipeline.dicom.values import Values, count_or_none, number_or_none, numbers_or_none, once_for_equal, text

# RescaleType without spaces: as the standard writes it, and as some writers do.
HOUNSFIELD_WORDS = {"", "HU", "HOUNSFIELD", "HOUNSFIELDS", "HOUNSFIELDUNIT", "HOUNSFIELDUNITS", "HUHOUNSFIELDUNITS"}
_EMPTY_ITEM = b"\xfe\xff\0\xe0\0\0\0\0"
MANUFACTURERS = {
    "GE": ("GE ", "GENERAL ELECTRIC"), "Siemens": ("SIEMENS",), "Philips": ("PHILIPS", "ADAC"), "Canon": ("CANON",),
    "Toshiba": ("TOSHIBA",), "Hitachi": ("HITACHI",), "Fujifilm": ("FUJI",), "NeuroLogica": ("NEUROLOGICA",),
    "Samsung": ("SAMSUNG",), "Neusoft": ("NEUSOFT",), "United Imaging": ("UNITED IMAGING", "UIH"),
    "Shimadzu": ("SHIMADZU",), "Picker": ("PICKER",), "Marconi": ("MARCONI",), "Elscint": ("ELSCINT",),
    "MinFound": ("MINFOUND",), "Anke": ("ANKE",), "Carestream": ("CARESTREAM",), "Planmed": ("PLANMED",),
}  # fmt: skip
MAX_FRAMES = 20_000
# Millimetres. The DICOM patient coordinate system has its origin at the scanner; farther away is damage.
MAX_COORDINATE_MM = 100_000.0
# Real slopes are 1, a few 0.1 to 2, and 32 for 12 bits squeezed into 8; real intercepts -8192 to 1.
MIN_SLOPE, MAX_SLOPE, MAX_INTERCEPT = 1e-3, 100.0, 100_000.0
_COS_45 = math.sqrt(0.5)
_UID = re.compile(r"[0-9A-Za-z._-]{1,64}")


class FileFacts(NamedTuple):
    """What holds for every frame of a file; names as in `SliceRecord`.

    Attributes:
        patient: PatientID as the file has it, or "".
    """

    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient: str
    slice_location: float | None
    instance_number: int | None
    num_frames: int
    pixels: PixelFormat
    lossy_flag: str
    manufacturer: str


class FrameFacts(NamedTuple):
    """What may differ from frame to frame; names as in `SliceRecord`."""

    position: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    slope: float
    intercept: float
    image_kind: str


def read_file_facts(header: Header) -> FileFacts:
    """Read what every frame of a CT file has in common.

    Raises:
        Rejected: it is no CT image, or what every CT slice needs is missing, beyond the limits, or does not fit.
    """
    values = header.values
    require_ct(values, header.media_class)
    if header.pixels is None:
        raise Rejected("no_pixels", "no pixel data")
    if header.pixels.tag != PIXEL_DATA:
        raise Rejected("pixel_format", "Float Pixel Data: floating-point pixels")
    facts = FileFacts(
        pixels=read_pixel_format(values, "little" if header.little_endian else "big"),
        sop_instance_uid=_uid(values, SOP_INSTANCE, "SOPInstanceUID"),
        study_instance_uid=_uid(values, STUDY_INSTANCE, "StudyInstanceUID"),
        series_instance_uid=_uid(values, SERIES_INSTANCE, "SeriesInstanceUID"),
        patient=text(values.get(PATIENT_ID, b"")),
        slice_location=_coordinate(values.get(SLICE_LOCATION, b"")),
        instance_number=count_or_none(values.get(INSTANCE_NUMBER, b"")),
        num_frames=_read_num_frames(values),
        lossy_flag=text(values.get(LOSSY, b"")),
        manufacturer=_known_manufacturer(values),
    )
    require_room(header, header.pixels, facts.pixels, facts.num_frames)
    return facts


def read_frame_facts(values: Values, missing_rescale: Literal["reject", "identity"]) -> FrameFacts:
    """Decide whether a frame is an axial slice in HU.

    Raises:
        Rejected: it is not, or it does not say so.

    Source: DICOM PS3.3 C.7.6.2 (Image Plane), C.11.1 (Modality LUT), C.8.15.3.10 (Pixel Value Transformation).
    """
    require_slice_type(values.get(FRAME_TYPE, b""))
    orientation = _read_orientation(values)
    position = numbers_or_none(values.get(POSITION, b""), 3)
    if position is not None and max(map(abs, position)) > MAX_COORDINATE_MM:
        position = None
    slope, intercept = _read_rescale(values, missing_rescale)
    kind = image_kind(values.get(FRAME_TYPE) or values.get(IMAGE_TYPE, b""))
    return FrameFacts(position, orientation, slope, intercept, kind)  # type: ignore[arg-type]


def _read_num_frames(values: Values) -> int:
    """Read NumberOfFrames; a file without it has one.

    "0" means one as well: writers leave it where there is no multi-frame module.

    Raises:
        Rejected: it is no number, below 0, or beyond the limit.
    """
    raw = values.get(NUMBER_OF_FRAMES, b"")
    if not raw or not text(raw):
        return 1
    count = count_or_none(raw)
    if count is None or count < 0:
        raise Rejected("damaged_header", "NumberOfFrames is not a positive number")
    if count == 0:
        return 1
    if count > MAX_FRAMES:
        raise Rejected("too_large", f"{count} frames; the limit is {MAX_FRAMES}")
    return count


@once_for_equal(MODALITY_LUT, RESCALE_TYPE, SLOPE, INTERCEPT)
def _read_rescale(values: Values, missing: Literal["reject", "identity"]) -> tuple[float, float]:
    if values.get(MODALITY_LUT, b"").replace(_EMPTY_ITEM, b""):
        raise Rejected("bad_rescale", "a Modality LUT in place of slope and intercept")
    unit, *stated = (text(values.get(tag, b"")) for tag in (RESCALE_TYPE, SLOPE, INTERCEPT))
    if re.sub(r"[\s_().-]", "", unit.upper()) not in HOUNSFIELD_WORDS:
        raise Rejected("rescale_type", "RescaleType is not HU")
    if missing == "reject" and not all(stated):
        raise Rejected("no_rescale", "no RescaleSlope or RescaleIntercept, so the HU are unknown")
    slope, intercept = number_or_none(stated[0] or "1"), number_or_none(stated[1] or "0")
    if slope is None or not MIN_SLOPE <= slope <= MAX_SLOPE:
        raise Rejected("bad_rescale", f"RescaleSlope is not a number from {MIN_SLOPE} to {MAX_SLOPE}")
    if intercept is None or abs(intercept) > MAX_INTERCEPT:
        raise Rejected("bad_rescale", f"RescaleIntercept is not a number from {-MAX_INTERCEPT} to {MAX_INTERCEPT}")
    return slope, intercept


@once_for_equal(ORIENTATION)
def _read_orientation(values: Values) -> tuple[float, ...] | None:
    """Read ImageOrientationPatient if its two directions span a plane: 6 numbers, unit vectors within 1 %.

    Raises:
        Rejected: the slice is not axial.
    """
    cosines = numbers_or_none(values.get(ORIENTATION, b""), 6)
    if cosines is None or any(abs(math.hypot(*axis) - 1) > 0.01 for axis in (cosines[:3], cosines[3:])):
        return None
    if abs(sum(a * b for a, b in zip(cosines[:3], cosines[3:], strict=True))) >= 0.01:
        return None
    rx, ry, _, cx, cy, _ = cosines
    if abs(rx * cy - ry * cx) < _COS_45:
        raise Rejected("not_axial", "the slice normal is more than 45 degrees off the body's axis")
    return cosines


@once_for_equal(MANUFACTURER)
def _known_manufacturer(values: Values) -> str:
    name = text(values.get(MANUFACTURER, b"")).upper() + " "
    return next((known for known, marks in MANUFACTURERS.items() if any(mark in name for mark in marks)), "other")


def _uid(values: Values, tag: int, name: str) -> str:
    """Return a UID. RSNA's `ID_` and hex digits pass as well; a value that could break a table does not."""
    uid = text(values.get(tag, b""))
    if not _UID.fullmatch(uid):
        raise Rejected("damaged_header", f"{name} is missing or not an identifier")
    return uid


def _coordinate(raw: bytes) -> float | None:
    number = number_or_none(text(raw)) if raw else None
    return number if number is not None and abs(number) <= MAX_COORDINATE_MM else None

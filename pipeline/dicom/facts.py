"""Decide from the header whether a file has CT slices, and how to interpret its values."""

import math
import re
from typing import Literal, NamedTuple

from pipeline.dicom.header import Header
from pipeline.dicom.kinds import image_kind, require_ct, require_slice_type
from pipeline.dicom.pixel_format import PixelFormat, read_pixel_format
from pipeline.dicom.pixels import require_complete_pixels
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
from pipeline.dicom.values import Values, cached_by_elements, count_or_none, number_or_none, numbers_or_none, text

# RescaleType without spaces and punctuation: "HU" in the standard, other spellings in real files.
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
# DICOM patient coordinates are relative to the scanner; a value beyond this limit is an error.
MAX_COORDINATE_MM = 100_000.0
# In real files, slopes are 1, rarely 0.1 to 2, and 32 for 12 bits reduced to 8; intercepts are -8192 to 1.
MIN_SLOPE, MAX_SLOPE, MAX_INTERCEPT = 1e-3, 100.0, 100_000.0
_COS_45 = math.sqrt(0.5)
_UID = re.compile(r"[0-9A-Za-z._-]{1,64}")


class FileFacts(NamedTuple):
    """Properties shared by all frames of a file; see also `SliceRecord`.

    Attributes:
        patient: PatientID as in the file, or "".
        num_frames: 1 for a single-frame file.
        lossy_flag: LossyImageCompression, "00", "01" or "".
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
    """Properties that may differ between frames; see `SliceRecord`."""

    position: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    slope: float
    intercept: float
    image_kind: str


def read_file_facts(header: Header) -> FileFacts:
    """Read the properties shared by all frames of a CT file.

    Raises:
        Rejected: the file is not a CT image, or a required element is missing, out of range or inconsistent.
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
    require_complete_pixels(header, header.pixels, facts.pixels, facts.num_frames)
    return facts


def read_frame_facts(values: Values, missing_rescale: Literal["reject", "identity"]) -> FrameFacts:
    """Read the geometry and the rescale of a frame.

    Args:
        values: the elements of the frame, including those that it shares with the others.
        missing_rescale: reject a frame without RescaleSlope or RescaleIntercept, or use 1 and 0.

    Raises:
        Rejected: the frame is not an axial slice, or its values are not known to be HU.

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
    """Read NumberOfFrames; 1 if it is missing, empty or "0", which some writers use for single-frame files.

    Raises:
        Rejected: it is not an integer, is negative, or exceeds the limit.
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


@cached_by_elements(MODALITY_LUT, RESCALE_TYPE, SLOPE, INTERCEPT)
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


@cached_by_elements(ORIENTATION)
def _read_orientation(values: Values) -> tuple[float, ...] | None:
    """Read ImageOrientationPatient; return None unless it is two perpendicular unit vectors, within 1 %.

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


@cached_by_elements(MANUFACTURER)
def _known_manufacturer(values: Values) -> str:
    name = text(values.get(MANUFACTURER, b"")).upper() + " "
    return next((known for known, marks in MANUFACTURERS.items() if any(mark in name for mark in marks)), "other")


def _uid(values: Values, tag: int, name: str) -> str:
    """Return a UID. RSNA's `ID_` and hex digits are accepted too; characters that could break a table are not.

    Raises:
        Rejected: it is missing, too long, or has other characters.
    """
    uid = text(values.get(tag, b""))
    if not _UID.fullmatch(uid):
        raise Rejected("damaged_header", f"{name} is missing or not an identifier")
    return uid


def _coordinate(raw: bytes) -> float | None:
    number = number_or_none(text(raw)) if raw else None
    return number if number is not None and abs(number) <= MAX_COORDINATE_MM else None

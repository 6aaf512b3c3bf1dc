"""Decide from a header whether a file holds CT slices, and what their values mean."""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, Literal, NamedTuple, TypeVar, cast

Values = Mapping[int, bytes]
Function = TypeVar("Function", bound=Callable[..., Any])

REJECT_CODES: dict[str, tuple[str, str]] = {
    "not_dicom": ("not_dicom", "The file is not DICOM."),
    "dicomdir": ("not_a_slice", "A DICOMDIR or another index without pixels."),
    "not_ct": ("not_a_slice", "Another kind of DICOM object: SR, SEG, MR, secondary capture and so on."),
    "colour": ("not_a_slice", "A colour picture, such as a screen or a dose report marked CT."),
    "localizer": ("not_a_slice", "A localizer (scout), as ImageType says."),
    "screen": ("not_a_slice", "A screen or a dose report, as ImageType says."),
    "not_axial": ("not_a_slice", "The slice normal is more than 45 degrees off the body's axis."),
    "damaged_header": ("failed", "The header cannot be read, or lacks what every CT slice has."),
    "no_pixels": ("failed", "A CT object without pixel data, or cut off before them."),
    "truncated": ("failed", "The pixel data are shorter than the header says."),
    "too_large": ("failed", "Larger than the limits that keep memory and time within bounds."),
    "pixel_format": ("failed", "Stored values of a kind that CT does not have."),
    "no_rescale": ("failed", "No RescaleSlope or RescaleIntercept, so HU are not known (policy missing_rescale)."),
    "rescale_type": ("failed", "RescaleType says that the values are not HU."),
    "bad_rescale": ("failed", "RescaleSlope or RescaleIntercept that cannot give HU."),
    "unsupported_coding": ("failed", "A transfer syntax that no decoder is used for."),
    "missing_decoder": ("failed", "The decoder for this transfer syntax is not installed."),
    "decoding_failed": ("failed", "The decoder refused the pixel data."),
}

SHARED_GROUPS, PER_FRAME_GROUPS = 0x52009229, 0x52009230
IMAGE_TYPE, FRAME_TYPE = 0x00080008, 0x00089007
SOP_CLASS, SOP_INSTANCE = 0x00080016, 0x00080018
MODALITY, MANUFACTURER = 0x00080060, 0x00080070
PATIENT_ID, STUDY_INSTANCE, SERIES_INSTANCE = 0x00100020, 0x0020000D, 0x0020000E
INSTANCE_NUMBER, POSITION, ORIENTATION, SLICE_LOCATION = 0x00200013, 0x00200032, 0x00200037, 0x00201041
SAMPLES, PHOTOMETRIC, NUMBER_OF_FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
PADDING_VALUE, PADDING_LIMIT = 0x00280120, 0x00280121
INTERCEPT, SLOPE, RESCALE_TYPE = 0x00281052, 0x00281053, 0x00281054
LOSSY, MODALITY_LUT, PIXEL_DATA = 0x00282110, 0x00283000, 0x7FE00010
FRAME_ELEMENTS = (FRAME_TYPE, POSITION, ORIENTATION, INTERCEPT, SLOPE, RESCALE_TYPE)
# CT Image Frame Type, Plane Position, Plane Orientation, Pixel Value Transformation.
FRAME_SEQUENCES = (0x00189329, 0x00209113, 0x00209116, 0x00289145)
# The allow-list: nothing else of a file is looked at, so nothing else can leave it.
NEEDED_ELEMENTS = [
    IMAGE_TYPE, SOP_CLASS, SOP_INSTANCE, MODALITY, MANUFACTURER, PATIENT_ID, STUDY_INSTANCE, SERIES_INSTANCE,
    INSTANCE_NUMBER, POSITION, ORIENTATION, SLICE_LOCATION, SAMPLES, PHOTOMETRIC, NUMBER_OF_FRAMES, ROWS, COLUMNS,
    BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION, PADDING_VALUE, PADDING_LIMIT, INTERCEPT, SLOPE,
    RESCALE_TYPE, LOSSY, MODALITY_LUT, SHARED_GROUPS, PER_FRAME_GROUPS,
]  # fmt: skip

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
# Enhanced CT Image Storage, Legacy Converted Enhanced CT Image Storage.
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM", "SCANOGRAM"}
SCREEN_WORDS = {"SCREEN SAVE", "DOSE_INFO", "DOSE", "DOSE REPORT", "PROTOCOL", "REPORT", "RESULTS", "SUMMARY"}
# Images that are computed from CT slices and pass as such, and the words of ImageType that tell them: those that the
# standard defines (PS3.3 C.8.2.1.1.1, C.8.15.2.1.1, C.8.16.1), and what makers write in their place.
IMAGE_KINDS = {
    "perfusion": (
        "PERFUSION", "CTP", "CBF", "RCBF", "CBV", "RCBV", "MTT", "TTP", "TMAX", "TTD", "TTS", "KTRANS", "PERMEABILITY",
        "BLOOD FLOW", "BLOOD VOLUME", "TIME TO PEAK", "MEAN TRANSIT TIME",
    ),
    "material": (
        "IODINE", "WATER", "CALCIUM", "VNC", "VIRTUAL NON CONTRAST", "VIRTUAL NONCONTRAST", "VUE", "MAT SPECIFIC",
        "MAT REMOVED", "MAT FRACTIONAL", "MAT MODIFIED", "MAT VALUE BASED", "MATERIAL", "EFF ATOMIC NUM", "Z EFFECTIVE",
        "ZEFF", "ELECTRON DENSITY",
    ),
    "projection": ("MIP", "MAXIMUM", "MAX IP", "MINIP", "MINIMUM", "MIN IP", "PROJECTION"),
}  # fmt: skip
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

# The largest CT matrix in use is 2048 x 2048; four times that still fits a worker's memory many times over.
MAX_PIXELS = 4096 * 4096
MAX_FRAMES = 20_000
# Millimetres. The DICOM patient coordinate system has its origin at the scanner; farther away is damage.
MAX_COORDINATE_MM = 100_000.0
# Real slopes are 1, a few 0.1 to 2, and 32 for 12 bits squeezed into 8; real intercepts -8192 to 1.
MIN_SLOPE, MAX_SLOPE, MAX_INTERCEPT = 1e-3, 100.0, 100_000.0
_COS_45 = math.sqrt(0.5)
_UID = re.compile(r"[0-9A-Za-z._-]{1,64}")


class Rejected(Exception):
    """The file, or one frame of it, gives no slice.

    Attributes:
        code: a word from `REJECT_CODES`.
        message: one sentence without patient data.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class PixelFormat(NamedTuple):
    """What the cells of a frame are; names as in `SliceRecord`.

    Attributes:
        padding: inclusive range of stored values that are no tissue, or None. It may lie outside of what
            bits_stored can hold: writers declare a 16-bit value for 12-bit pixels.
    """

    height: int
    width: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    padding: tuple[int, int] | None

    @property
    def frame_bytes(self) -> int:
        """The bytes of a frame that is not compressed."""
        return self.height * self.width * self.bits_allocated // 8


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


def text(raw: bytes) -> str:
    """Decode a value without padding; any byte gives some character, so comparing and hashing always work."""
    return raw.decode("latin-1").strip(" \0")


def uid_or_none(value: str) -> str | None:
    """A UID made of digits and dots, so that it may be quoted; None for what could be anything else."""
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else None


def _once_for_equal(*tags: int) -> Callable[[Function], Function]:
    """Have a function of these elements work them out once for all files that have the same, such as a series."""

    def decorate(function: Function) -> Function:
        @lru_cache(maxsize=256)
        def work_out(raws: tuple[bytes | None, ...], *arguments: Any) -> Any:
            return function({tag: raw for tag, raw in zip(tags, raws, strict=True) if raw is not None}, *arguments)

        @wraps(function)
        def look_up(values: Values, *arguments: Any) -> Any:
            return work_out(tuple(map(values.get, tags)), *arguments)

        return cast(Function, look_up)

    return decorate


@_once_for_equal(SOP_CLASS, MODALITY, PHOTOMETRIC, IMAGE_TYPE)
def require_ct(values: Values, media_class: str) -> None:
    """Tell a CT object from the others that a study holds.

    Args:
        media_class: SOP class in the file meta information, or "".

    Raises:
        Rejected: it is another kind of object, a colour picture, a localizer or a screen.
    """
    sop_class = text(values.get(SOP_CLASS, b"")) or media_class
    modality = text(values.get(MODALITY, b""))
    if sop_class == MEDIA_DIRECTORY:
        raise Rejected("dicomdir", "a media directory")
    if sop_class and sop_class not in (CT_IMAGE, *ENHANCED_CT):
        raise Rejected("not_ct", "the SOP class is not CT image storage")
    if modality != "CT" and (modality or not sop_class):
        raise Rejected("not_ct", "the modality is not CT")
    photometric = text(values.get(PHOTOMETRIC, b""))
    if photometric and not photometric.startswith("MONOCHROME"):
        raise Rejected("colour", "the pixels are colours")
    _require_slice_type(values.get(IMAGE_TYPE, b""))


def read_file_facts(values: Values, *, little_endian: bool) -> FileFacts:
    """Read what every frame of a CT file has in common.

    Raises:
        Rejected: what every CT slice needs is missing or beyond the limits.
    """
    pixels = _read_pixel_format(values, "little" if little_endian else "big")
    return FileFacts(
        sop_instance_uid=_uid(values, SOP_INSTANCE, "SOPInstanceUID"),
        study_instance_uid=_uid(values, STUDY_INSTANCE, "StudyInstanceUID"),
        series_instance_uid=_uid(values, SERIES_INSTANCE, "SeriesInstanceUID"),
        patient=text(values.get(PATIENT_ID, b"")),
        slice_location=_coordinate(values.get(SLICE_LOCATION, b"")),
        instance_number=_read_count(values.get(INSTANCE_NUMBER, b"")),
        num_frames=read_num_frames(values),
        pixels=pixels,
        lossy_flag=text(values.get(LOSSY, b"")),
        manufacturer=_known_manufacturer(values),
    )


def read_frame_facts(values: Values, missing_rescale: Literal["reject", "identity"]) -> FrameFacts:
    """Decide whether a frame is an axial slice in HU.

    Raises:
        Rejected: it is not, or it does not say so.

    Source: DICOM PS3.3 C.7.6.2 (Image Plane), C.11.1 (Modality LUT), C.8.15.3.10 (Pixel Value Transformation).
    """
    _require_slice_type(values.get(FRAME_TYPE, b""))
    orientation = _read_orientation(values)
    position = _numbers(values.get(POSITION, b""), 3)
    if position is not None and max(map(abs, position)) > MAX_COORDINATE_MM:
        position = None
    slope, intercept = _read_rescale(values, missing_rescale)
    kind = _image_kind(values.get(FRAME_TYPE) or values.get(IMAGE_TYPE, b""))
    return FrameFacts(position, orientation, slope, intercept, kind)  # type: ignore[arg-type]


def read_num_frames(values: Values) -> int:
    """Read NumberOfFrames; a file without it has one.

    "0" means one as well: writers leave it where there is no multi-frame module.

    Raises:
        Rejected: it is no number, below 0, or beyond the limit.
    """
    raw = values.get(NUMBER_OF_FRAMES, b"")
    if not raw or not text(raw):
        return 1
    count = _read_count(raw)
    if count is None or count < 0:
        raise Rejected("damaged_header", "NumberOfFrames is no positive number")
    if count == 0:
        return 1
    if count > MAX_FRAMES:
        raise Rejected("too_large", f"{count} frames; the limit is {MAX_FRAMES}")
    return count


@lru_cache(maxsize=256)
def _require_slice_type(image_type: bytes) -> None:
    words = {word.strip() for word in text(image_type).upper().split("\\")}
    if words & LOCALIZER_WORDS:
        raise Rejected("localizer", "ImageType says localizer")
    if words & SCREEN_WORDS:
        raise Rejected("screen", "ImageType says screen or report")


@lru_cache(maxsize=256)
def _image_kind(image_type: bytes) -> str:
    """Return the first of `IMAGE_KINDS` that a value names, "" for none; a word counts as a whole, in any value."""
    values = [f" {' '.join(re.findall('[A-Z0-9]+', value))} " for value in text(image_type).upper().split("\\")]
    named = (
        kind for kind, words in IMAGE_KINDS.items() if any(f" {word} " in value for word in words for value in values)
    )
    return next(named, "")


@_once_for_equal(
    *(SAMPLES, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION, ROWS, COLUMNS),
    *(PADDING_VALUE, PADDING_LIMIT),
)
def _read_pixel_format(values: Values, order: Literal["little", "big"]) -> PixelFormat:
    """Read what the cells are.

    Source: DICOM PS3.5 8.1.1: HighBit is BitsStored - 1. Files that say otherwise exist with the bits in either
    place, so they are turned away rather than guessed.
    """
    allocated, stored = _integer(values, BITS_ALLOCATED, order), _integer(values, BITS_STORED, order)
    sign = _integer(values, PIXEL_REPRESENTATION, order)
    if _integer(values, SAMPLES, order) not in (1, None):
        raise Rejected("colour", "more than one sample a pixel")
    if allocated is None or stored is None:
        raise Rejected("damaged_header", "BitsAllocated or BitsStored is missing")
    if allocated not in (8, 16, 32) or not 8 <= stored <= allocated:
        raise Rejected("pixel_format", f"{stored} bits stored in {allocated}; known are 8 or more in 8, 16 or 32")
    if sign not in (0, 1):
        raise Rejected("pixel_format", "PixelRepresentation is neither 0 nor 1")
    if _integer(values, HIGH_BIT, order) not in (stored - 1, None):
        raise Rejected("pixel_format", "HighBit is not BitsStored - 1")
    height, width = _integer(values, ROWS, order), _integer(values, COLUMNS, order)
    if not height or not width:
        raise Rejected("damaged_header", "Rows or Columns is missing or 0")
    if height * width > MAX_PIXELS:
        raise Rejected("too_large", f"{height} x {width} pixels; the limit is {MAX_PIXELS} in all")
    return PixelFormat(height, width, allocated, stored, sign == 1, _read_padding(values, order, signed=sign == 1))


def _read_padding(values: Values, order: Literal["little", "big"], *, signed: bool) -> tuple[int, int] | None:
    """Read PixelPaddingValue and PixelPaddingRangeLimit, in stored values.

    Source: DICOM PS3.3 C.7.5.1.1.2; the sign is PixelRepresentation's, whatever the VR says.
    """
    raw = values.get(PADDING_VALUE, b"")[:2]
    if len(raw) < 2:
        return None
    limit = values.get(PADDING_LIMIT, b"")[:2]
    ends = [int.from_bytes(end, order, signed=signed) for end in (raw, limit if len(limit) == 2 else raw)]
    return min(ends), max(ends)


@_once_for_equal(MODALITY_LUT, RESCALE_TYPE, SLOPE, INTERCEPT)
def _read_rescale(values: Values, missing: Literal["reject", "identity"]) -> tuple[float, float]:
    if values.get(MODALITY_LUT, b"").replace(_EMPTY_ITEM, b""):
        raise Rejected("bad_rescale", "a Modality LUT in place of slope and intercept")
    unit, *stated = (text(values.get(tag, b"")) for tag in (RESCALE_TYPE, SLOPE, INTERCEPT))
    if re.sub(r"[\s_().-]", "", unit.upper()) not in HOUNSFIELD_WORDS:
        raise Rejected("rescale_type", "RescaleType is not HU")
    if missing == "reject" and not all(stated):
        raise Rejected("no_rescale", "no RescaleSlope or RescaleIntercept, so HU are not known")
    slope, intercept = _number(stated[0] or "1"), _number(stated[1] or "0")
    if slope is None or not MIN_SLOPE <= slope <= MAX_SLOPE:
        raise Rejected("bad_rescale", f"RescaleSlope is not a number from {MIN_SLOPE} to {MAX_SLOPE}")
    if intercept is None or abs(intercept) > MAX_INTERCEPT:
        raise Rejected("bad_rescale", f"RescaleIntercept is not a number up to {MAX_INTERCEPT}")
    return slope, intercept


@_once_for_equal(ORIENTATION)
def _read_orientation(values: Values) -> tuple[float, ...] | None:
    """Read ImageOrientationPatient if its two directions span a plane: 6 numbers, unit vectors within 1 %.

    Raises:
        Rejected: the slice is not axial.
    """
    cosines = _numbers(values.get(ORIENTATION, b""), 6)
    if cosines is None or any(abs(math.hypot(*axis) - 1) > 0.01 for axis in (cosines[:3], cosines[3:])):
        return None
    if abs(sum(a * b for a, b in zip(cosines[:3], cosines[3:], strict=True))) >= 0.01:
        return None
    rx, ry, _, cx, cy, _ = cosines
    if abs(rx * cy - ry * cx) < _COS_45:
        raise Rejected("not_axial", "the slice normal is more than 45 degrees off the body's axis")
    return cosines


@_once_for_equal(MANUFACTURER)
def _known_manufacturer(values: Values) -> str:
    name = text(values.get(MANUFACTURER, b"")).upper() + " "
    return next((known for known, marks in MANUFACTURERS.items() if any(mark in name for mark in marks)), "other")


def _uid(values: Values, tag: int, name: str) -> str:
    """Return a UID. RSNA's `ID_` and hex digits pass as well; a value that could break a table does not."""
    uid = text(values.get(tag, b""))
    if not _UID.fullmatch(uid):
        raise Rejected("damaged_header", f"{name} is missing or no identifier")
    return uid


def _integer(values: Values, tag: int, order: Literal["little", "big"]) -> int | None:
    raw = values.get(tag, b"")
    return int.from_bytes(raw[:2], order) if len(raw) >= 2 else None


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numbers(raw: bytes, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(map(float, text(raw).split("\\")))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _coordinate(raw: bytes) -> float | None:
    number = _number(text(raw)) if raw else None
    return number if number is not None and abs(number) <= MAX_COORDINATE_MM else None


def _read_count(raw: bytes) -> int | None:
    """Read an integer string of 32 bits."""
    number = _number(text(raw)) if raw else None
    return int(number) if number is not None and number == int(number) and abs(number) < 2**31 else None

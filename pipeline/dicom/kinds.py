"""Distinguish CT slices from the other objects and images in a study."""

import re
from functools import lru_cache

from pipeline.dicom.rejects import Rejected
from pipeline.dicom.tags import IMAGE_TYPE, MODALITY, PHOTOMETRIC, SOP_CLASS
from pipeline.dicom.values import Values, cached_by_elements, text

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
# Enhanced CT Image Storage, Legacy Converted Enhanced CT Image Storage.
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM", "SCANOGRAM"}
SCREEN_WORDS = {"SCREEN SAVE", "DOSE_INFO", "DOSE", "DOSE REPORT", "PROTOCOL", "REPORT", "RESULTS", "SUMMARY"}
# Images that are computed from CT slices and stored as such, and the words of ImageType that identify them: those of
# the standard (PS3.3 C.8.2.1.1.1, C.8.15.2.1.1, C.8.16.1), and those that manufacturers use instead.
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


@cached_by_elements(SOP_CLASS, MODALITY, PHOTOMETRIC, IMAGE_TYPE)
def require_ct(values: Values, media_class: str) -> None:
    """Raise Rejected for another kind of object, a colour image, a localizer, or a screen or report.

    Args:
        values: the elements of the file.
        media_class: SOP class in the file meta information, or "".
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
    require_slice_type(values.get(IMAGE_TYPE, b""))


@lru_cache(maxsize=256)
def require_slice_type(image_type: bytes) -> None:
    """Raise Rejected if a value of ImageType identifies a localizer, or a screen or report."""
    words = {word.strip() for word in text(image_type).upper().split("\\")}
    if words & LOCALIZER_WORDS:
        raise Rejected("localizer", "ImageType says localizer")
    if words & SCREEN_WORDS:
        raise Rejected("screen", "ImageType says screen or report")


@lru_cache(maxsize=256)
def image_kind(image_type: bytes) -> str:
    """Return the first of `IMAGE_KINDS` of which a value of ImageType has a word; "" if none."""
    values = [f" {' '.join(re.findall('[A-Z0-9]+', value))} " for value in text(image_type).upper().split("\\")]
    named = (
        kind for kind, words in IMAGE_KINDS.items() if any(f" {word} " in value for word in words for value in values)
    )
    return next(named, "")

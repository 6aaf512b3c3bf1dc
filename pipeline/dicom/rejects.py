"""The reasons why a file, or one frame of it, gives no slice."""

REJECT_CODES: dict[str, tuple[str, str]] = {
    "not_dicom": ("not_dicom", "The file is not DICOM."),
    "dicomdir": ("not_a_slice", "A DICOMDIR or another index without pixels."),
    "not_ct": ("not_a_slice", "Another kind of DICOM object: SR, SEG, MR, secondary capture and so on."),
    "colour": ("not_a_slice", "A colour image, such as a screen or a dose report marked CT."),
    "localizer": ("not_a_slice", "A localizer (scout), according to ImageType."),
    "screen": ("not_a_slice", "A screen or a dose report, according to ImageType."),
    "not_axial": ("not_a_slice", "The slice normal is more than 45 degrees off the body's axis."),
    "damaged_header": ("failed", "The header cannot be read, or lacks an element that every CT slice has."),
    "no_pixels": ("failed", "A CT object without pixel data, or cut off before them."),
    "truncated": ("failed", "The pixel data are shorter than the header says."),
    "too_large": ("failed", "Larger than the limits that keep memory and time within bounds."),
    "pixel_format": ("failed", "A pixel format that is not supported or contradicts itself."),
    "no_rescale": ("failed", "No RescaleSlope or RescaleIntercept, so the HU are unknown (policy missing_rescale)."),
    "rescale_type": ("failed", "RescaleType says that the values are not HU."),
    "bad_rescale": ("failed", "RescaleSlope or RescaleIntercept that cannot give HU."),
    "unsupported_coding": ("failed", "A transfer syntax for which there is no decoder."),
    "missing_decoder": ("failed", "The decoder for this transfer syntax is not installed."),
    "decoding_failed": ("failed", "The decoder rejected the pixel data."),
}


class Rejected(Exception):
    """The file, or one frame of it, gives no slice.

    Attributes:
        code: a key of `REJECT_CODES`.
        message: the reason, without patient data.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

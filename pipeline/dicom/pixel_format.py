"""Read the pixel format of a frame: size, bits, sign and padding."""

from typing import Literal, NamedTuple

from pipeline.dicom.rejects import Rejected
from pipeline.dicom.tags import (
    BITS_ALLOCATED,
    BITS_STORED,
    COLUMNS,
    HIGH_BIT,
    PADDING_LIMIT,
    PADDING_VALUE,
    PIXEL_REPRESENTATION,
    ROWS,
    SAMPLES,
)
from pipeline.dicom.values import Values, cached_by_elements, integer

# Four times the largest CT matrix in use, 2048 x 2048; a frame of this size is still far below a worker's memory.
MAX_PIXELS = 4096 * 4096


class PixelFormat(NamedTuple):
    """The pixel format of a frame; see also `SliceRecord`.

    Attributes:
        height, width: in pixels.
        bits_allocated: bits per cell: 8, 16 or 32.
        bits_stored: bits per value, 8 to bits_allocated.
        signed: whether values are in two's complement.
        padding: inclusive range of stored values that are not tissue, or None. It may exceed the range of bits_stored,
            as some writers declare a 16-bit value for 12-bit pixels.
    """

    height: int
    width: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    padding: tuple[int, int] | None

    @property
    def frame_bytes(self) -> int:
        """The size of an uncompressed frame in bytes."""
        return self.height * self.width * self.bits_allocated // 8


@cached_by_elements(
    *(SAMPLES, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION, ROWS, COLUMNS),
    *(PADDING_VALUE, PADDING_LIMIT),
)
def read_pixel_format(values: Values, order: Literal["little", "big"]) -> PixelFormat:
    """Read the pixel format.

    Raises:
        Rejected: an element is missing or unsupported, or the frame is too large. HighBit must be BitsStored - 1:
            among files with another value, some have the bits where it says and some do not.

    Source: DICOM PS3.5 8.1.1.
    """
    allocated, stored = integer(values, BITS_ALLOCATED, order), integer(values, BITS_STORED, order)
    sign = integer(values, PIXEL_REPRESENTATION, order)
    if integer(values, SAMPLES, order) not in (1, None):
        raise Rejected("colour", "more than one sample per pixel")
    if allocated is None or stored is None:
        raise Rejected("damaged_header", "BitsAllocated or BitsStored is missing")
    if allocated not in (8, 16, 32) or not 8 <= stored <= allocated:
        raise Rejected("pixel_format", f"{stored} bits stored in {allocated}; supported are 8 or more in 8, 16 or 32")
    if sign not in (0, 1):
        raise Rejected("pixel_format", "PixelRepresentation is neither 0 nor 1")
    if integer(values, HIGH_BIT, order) not in (stored - 1, None):
        raise Rejected("pixel_format", "HighBit is not BitsStored - 1")
    height, width = integer(values, ROWS, order), integer(values, COLUMNS, order)
    if not height or not width:
        raise Rejected("damaged_header", "Rows or Columns is missing or 0")
    if height * width > MAX_PIXELS:
        raise Rejected("too_large", f"{height} x {width} pixels; the limit is {MAX_PIXELS} in all")
    return PixelFormat(height, width, allocated, stored, sign == 1, _read_padding(values, order, signed=sign == 1))


def _read_padding(values: Values, order: Literal["little", "big"], *, signed: bool) -> tuple[int, int] | None:
    """Read PixelPaddingValue and PixelPaddingRangeLimit, in stored values.

    They are signed if PixelRepresentation says so, whatever their VR.

    Source: DICOM PS3.3 C.7.5.1.1.2.
    """
    raw = values.get(PADDING_VALUE, b"")[:2]
    if len(raw) < 2:
        return None
    limit = values.get(PADDING_LIMIT, b"")[:2]
    ends = [int.from_bytes(end, order, signed=signed) for end in (raw, limit if len(limit) == 2 else raw)]
    return min(ends), max(ends)

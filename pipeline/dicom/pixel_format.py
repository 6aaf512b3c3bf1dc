"""Read what the cells of a frame are: its size, its bits, its sign, its padding."""

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
from pipeline.dicom.values import Values, integer, once_for_equal

# The largest CT matrix in use is 2048 x 2048; four times that still fits a worker's memory many times over.
MAX_PIXELS = 4096 * 4096


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


@once_for_equal(
    *(SAMPLES, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION, ROWS, COLUMNS),
    *(PADDING_VALUE, PADDING_LIMIT),
)
def read_pixel_format(values: Values, order: Literal["little", "big"]) -> PixelFormat:
    """Read what the cells are.

    Source: DICOM PS3.5 8.1.1: HighBit is BitsStored - 1. Files that say otherwise exist with the bits in either
    place, so they are turned away rather than guessed.
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

    Source: DICOM PS3.3 C.7.5.1.1.2; the sign is PixelRepresentation's, whatever the VR says.
    """
    raw = values.get(PADDING_VALUE, b"")[:2]
    if len(raw) < 2:
        return None
    limit = values.get(PADDING_LIMIT, b"")[:2]
    ends = [int.from_bytes(end, order, signed=signed) for end in (raw, limit if len(limit) == 2 else raw)]
    return min(ends), max(ends)

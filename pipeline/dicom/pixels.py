"""Read the stored values of a frame from the pixel data."""

import struct

import numpy as np
import xxhash

from pipeline.dicom.codecs import decode_frame, require_decoder
from pipeline.dicom.header import EXPLICIT_BIG, NATIVE, Header, Pixels
from pipeline.dicom.pixel_format import PixelFormat
from pipeline.dicom.rejects import Rejected

_CELLS = {
    (little, size): np.dtype(f"{'<' if little else '>'}u{size}") for little in (True, False) for size in (1, 2, 4)
}


def require_complete_pixels(header: Header, pixels: Pixels, cells: PixelFormat, num_frames: int) -> None:
    """Check that the pixel data are as long as the header says, before anything is allocated for them.

    Raises:
        Rejected: they are too short, or there is no decoder for them.
    """
    held = len(header.body) - pixels.start
    # Some writers omit the byte that pads to an even length.
    if pixels.length is not None and pixels.length > held + 1:
        raise Rejected("truncated", f"the pixel data hold {held} of {pixels.length} bytes")
    if header.transfer_syntax in NATIVE:
        if pixels.length is None:
            raise Rejected("damaged_header", "encapsulated pixel data in an uncompressed transfer syntax")
        if header.transfer_syntax == EXPLICIT_BIG and cells.bits_allocated == 8:
            raise Rejected("pixel_format", "8-bit pixels in big-endian words")
        held = min(held, pixels.length)
        needed = num_frames * cells.frame_bytes
    else:
        require_decoder(header.transfer_syntax)
        needed = num_frames * 8  # each frame has an item with a header of 8 bytes
    if held < needed:
        raise Rejected("truncated", f"the pixel data hold {held} of {needed} bytes")


def read_stored(header: Header, pixels: PixelFormat, index: int, code: bytes | None) -> np.ndarray:
    """Read the stored values of one frame.

    Args:
        header: of the file.
        pixels: format of the frame.
        index: of the frame, counted from 0.
        code: the frame's code stream; None if the pixels are not compressed.

    Returns:
        (H, W) int16 or uint16; for an uncompressed file a view of its bytes if no value has to be changed.

    Raises:
        Rejected: the frame cannot be decoded, or its values do not fit 16 bits.
    """
    return _stored_values(_read_cells(header, pixels, index, code), pixels)


def _read_cells(header: Header, pixels: PixelFormat, index: int, code: bytes | None) -> np.ndarray:
    """Return the cells of a frame, (H, W) uint16 or uint32, including unused high bits."""
    size_bytes = pixels.bits_allocated // 8
    if header.transfer_syntax not in NATIVE:
        if code is None:
            raise Rejected("truncated", "no code stream for the frame")
        return decode_frame(code, header.transfer_syntax, pixels)
    assert header.pixels is not None
    start = header.pixels.start + index * pixels.height * pixels.width * size_bytes
    shape, dtype = (pixels.height, pixels.width), _CELLS[header.little_endian, size_bytes]
    cells: np.ndarray = np.ndarray(shape, dtype, header.body, start)
    return cells.astype(np.uint32 if size_bytes == 4 else np.uint16, copy=not cells.flags.aligned)


def _stored_values(cells: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Remove the bits above BitsStored and apply the sign; return a view if that changes nothing.

    Cells whose full 16 bits are padding keep them: -2000 masked to 12 unsigned bits would become bone.
    """
    if cells.dtype.itemsize == 4:
        return _narrow(cells, pixels)
    signed_cells = cells.view(np.int16) if pixels.signed else cells
    if pixels.bits_stored == 16:
        return signed_cells
    high = 1 << (pixels.bits_stored - pixels.signed)
    if signed_cells.max() < high and (not pixels.signed or signed_cells.min() >= -high):
        return signed_cells
    unused = 16 - pixels.bits_stored
    stored = (cells << unused).view(signed_cells.dtype) >> unused
    if pixels.padding is not None:
        is_padding = (signed_cells >= pixels.padding[0]) & (signed_cells <= pixels.padding[1])
        stored[is_padding] = signed_cells[is_padding]
    return stored


def _narrow(cells: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Convert 32-bit cells to int16 or uint16.

    Raises:
        Rejected: the values do not fit.
    """
    unused = 32 - pixels.bits_stored
    values = (cells << unused).view(np.int32 if pixels.signed else np.uint32) >> unused
    low, high = values.min(), values.max()
    for dtype in (np.int16, np.uint16) if pixels.signed else (np.uint16,):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    raise Rejected("pixel_format", "32-bit values that do not fit 16 bits")


def digest_pixels(stored: np.ndarray, slope: float, intercept: float, padding: tuple[int, int] | None) -> str:
    """Return the xxh3-128 (hex) of everything that HU depend on: values, shape, type, slope, intercept, padding."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(stored).data)
    low, high = padding or (0, -1)
    digest.update(struct.pack("<2I2s2d2i", *stored.shape, stored.dtype.kind.encode(), slope, intercept, low, high))
    return digest.hexdigest()

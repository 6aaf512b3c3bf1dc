"""Decode the compressed frames of a DICOM file with imagecodecs."""

import contextlib
import importlib
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.dicom.pixel_format import PixelFormat
from pipeline.dicom.rejects import Rejected
from pipeline.dicom.values import uid_or_none

EXTRA = "pip install 'ich-cache[codecs]'"


@dataclass(frozen=True, slots=True)
class Coding:
    """A compressed transfer syntax.

    Attributes:
        decoder: name of the function in imagecodecs.
        can_lose: the coding may be lossy; LossyImageCompression says whether it was for a given file.
        always_loses: the coding is always lossy.
    """

    decoder: str
    can_lose: bool = False
    always_loses: bool = False


# jpeg8_decode also decodes 12-bit and lossless JPEG: imagecodecs builds libjpeg-turbo for all three.
CODINGS = {
    "1.2.840.10008.1.2.4.50": Coding("jpeg8_decode", can_lose=True, always_loses=True),
    "1.2.840.10008.1.2.4.51": Coding("jpeg8_decode", can_lose=True, always_loses=True),
    "1.2.840.10008.1.2.4.57": Coding("jpeg8_decode"),
    "1.2.840.10008.1.2.4.70": Coding("jpeg8_decode"),
    "1.2.840.10008.1.2.4.80": Coding("jpegls_decode"),
    "1.2.840.10008.1.2.4.81": Coding("jpegls_decode", can_lose=True),
    "1.2.840.10008.1.2.4.90": Coding("jpeg2k_decode"),
    "1.2.840.10008.1.2.4.91": Coding("jpeg2k_decode", can_lose=True),
    "1.2.840.10008.1.2.4.201": Coding("jpeg2k_decode"),
    "1.2.840.10008.1.2.4.202": Coding("jpeg2k_decode"),
    "1.2.840.10008.1.2.4.203": Coding("jpeg2k_decode", can_lose=True),
    "1.2.840.10008.1.2.5": Coding("dicomrle_decode"),
}
RLE = "1.2.840.10008.1.2.5"
# End of image, or end of code stream. If it is missing, CharLS 2.4 searches for it for up to 20 s, and the JPEG and
# JPEG 2000 decoders fill the missing part with grey.
_END = b"\xff\xd9"
# Bytes after the end marker. Real files have either, and more of them than an even length needs.
_PADDING = b"\0\xff"
_JP2_SIGNATURE = b"\0\0\0\x0cjP  "


class Picture(NamedTuple):
    """The image format according to the header of a code stream with one component.

    Attributes:
        height, width: in pixels.
        precision: bits per value.
        signed: whether values are signed, which only JPEG 2000 can state.
    """

    height: int
    width: int
    precision: int
    signed: bool


@lru_cache(maxsize=256)
def is_lossy(transfer_syntax: str, flag: str) -> bool:
    """Return whether pixels were compressed lossily; a coding that may be lossy counts unless the flag is "00".

    Args:
        transfer_syntax: UID.
        flag: LossyImageCompression (0028,2110): "00", "01" or "".
    """
    coding = CODINGS.get(transfer_syntax, Coding(""))
    return coding.always_loses or flag == "01" or (coding.can_lose and flag != "00")


def require_decoder(transfer_syntax: str) -> None:
    """Raise Rejected if there is no decoder for a transfer syntax, because it is retired, private or unknown."""
    if transfer_syntax not in CODINGS:
        name = uid_or_none(transfer_syntax) or "in this file, which is not a UID"
        raise Rejected("unsupported_coding", f"there is no decoder for the transfer syntax {name}")


def decode_frame(code: bytes, transfer_syntax: str, pixels: PixelFormat) -> np.ndarray:
    """Decode one frame.

    Returns:
        (height, width) uint16, or uint32 for RLE with 32 bits allocated: the cells as in an uncompressed file. If the
        header says that values are signed, they are in two's complement, sign-extended (except for RLE).

    Raises:
        Rejected: there is no decoder, it rejects the code stream, or the image does not match the header.
    """
    decode = _find_decoder(transfer_syntax)
    if transfer_syntax == RLE:
        return _decode_rle(decode, code, pixels)
    code = _code_stream(code)
    if not code.endswith(_END):
        raise Rejected("truncated", "the code stream has no end marker")
    picture, shape = read_picture(code), (pixels.height, pixels.width)
    if picture is None:
        raise Rejected("decoding_failed", "the code stream does not start like that of a one-component image")
    if picture[:2] != shape:
        sizes = f"{picture.height} x {picture.width} pixels in the code stream, {shape[0]} x {shape[1]} in the header"
        raise Rejected("decoding_failed", sizes)
    values = _run(decode, code)
    if values.shape != shape or values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        raise Rejected("decoding_failed", "the decoded image does not match the header")
    return _to_cells(values, picture, pixels)


def read_picture(code: bytes) -> Picture | None:
    """Read the header of a code stream; return None if it is damaged or has more than one component.

    Decoders allocate the size that the code stream states, so it is compared with the DICOM header before decoding.

    Source: ITU-T T.81 B.1.1.2 (fill bytes), B.2.2 (SOFn), T.87 C.2.2 (SOF55), T.800 A.5.1 (SIZ).
    """
    try:
        if code[:4] == b"\xff\x4f\xff\x51":
            right, bottom, left, top = struct.unpack_from(">4L", code, 8)
            components, depth = struct.unpack_from(">HB", code, 40)
            return Picture(bottom - top, right - left, (depth & 127) + 1, depth > 127) if components == 1 else None
        at = 2 if code[:2] == b"\xff\xd8" else len(code)
        while True:
            while code[at : at + 2] == b"\xff\xff":
                at += 1
            marker, length = struct.unpack_from(">HH", code, at)
            if (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)) or marker == 0xFFF7:
                precision, height, width, components = struct.unpack_from(">BHHB", code, at + 4)
                return Picture(height, width, precision, signed=False) if components == 1 else None
            if marker < 0xFF00 or length < 2:
                return None
            at += 2 + length
    except struct.error:
        return None


def _code_stream(code: bytes) -> bytes:
    """Return the code stream without JP2 boxes around it and padding after it.

    Raises:
        Rejected: there is a palette, which would map the values to others.

    Source: ITU-T T.800 I.4 (boxes), I.5.4 (contiguous code stream).
    """
    at = 0 if code.startswith(_JP2_SIGNATURE) else len(code)
    while at + 16 <= len(code):
        length, kind = struct.unpack_from(">L4s", code, at)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", code, at + 8), 16
        if kind == b"jp2h" and b"pclr" in code[at : at + length]:
            raise Rejected("decoding_failed", "the JP2 wrapper has a palette")
        if kind == b"jp2c":
            code = code[at + head : at + length if length else None]
            break
        if length < head:
            break
        at += length
    return code.rstrip(_PADDING)


def _to_cells(values: np.ndarray, picture: Picture, pixels: PixelFormat) -> np.ndarray:
    """Convert decoded values to cells. Their width and sign are those of the code stream, not of the DICOM header.

    A signed value that was coded as unsigned, as JPEG always does, is in two's complement of the coded width.

    Raises:
        Rejected: values of the code stream are out of the range that the DICOM header allows, so one of the two is
            wrong.
    """
    if picture.signed and not pixels.signed and values.min() < 0:
        raise Rejected("pixel_format", "the code stream has values below 0, and the header says they are unsigned")
    if values.dtype.kind == "i":
        values = values.astype(np.int16, copy=False).view(np.uint16)
    cells = values.astype(np.uint16, copy=False)
    if pixels.signed and not picture.signed and picture.precision < 16:
        unused = 16 - picture.precision
        cells = ((cells << unused).view(np.int16) >> unused).view(np.uint16)
    if picture.precision > pixels.bits_stored and not _fit_bits_stored(cells, pixels):
        bits = f"the code stream has {picture.precision} bits"
        raise Rejected("pixel_format", f"{bits}, and values that do not fit BitsStored ({pixels.bits_stored})")
    return cells


def _fit_bits_stored(cells: np.ndarray, pixels: PixelFormat) -> bool:
    """Return whether every cell fits BitsStored bits or is padding."""
    values = cells.view(np.int16) if pixels.signed else cells
    high = 1 << (pixels.bits_stored - pixels.signed)
    outside = (values >= high) | (values < -high if pixels.signed else False)
    if pixels.padding is not None:
        outside &= (values < pixels.padding[0]) | (values > pixels.padding[1])
    return not outside.any()


def _find_decoder(transfer_syntax: str) -> Callable[..., np.ndarray]:
    require_decoder(transfer_syntax)
    try:
        return getattr(importlib.import_module("imagecodecs"), CODINGS[transfer_syntax].decoder)
    except ImportError:
        raise Rejected("missing_decoder", f"the transfer syntax needs imagecodecs; run: {EXTRA}") from None


def _decode_rle(decode: Callable[..., np.ndarray], code: bytes, pixels: PixelFormat) -> np.ndarray:
    """Decode a frame of RLE segments, one for each byte of a pixel.

    Source: DICOM PS3.5 G.
    """
    bytes_per_pixel = pixels.bits_allocated // 8
    if len(code) < 64 or struct.unpack_from("<L", code)[0] != bytes_per_pixel:
        raise Rejected("decoding_failed", "the RLE header does not have one segment per byte of a pixel")
    # A pair of bytes unpacks to at most 128.
    if len(code) * 64 < pixels.frame_bytes:
        raise Rejected("truncated", "the RLE segments are too short for the image")
    dtype = np.dtype(f"<u{bytes_per_pixel}")
    unpacked: Any = b""
    with contextlib.suppress(Rejected):
        unpacked = _run(decode, code, dtype)
    if len(unpacked) != pixels.frame_bytes:
        unpacked = _unpack_segments(code, pixels.frame_bytes // bytes_per_pixel)
    cells = np.frombuffer(unpacked, dtype).reshape(pixels.height, pixels.width)
    return cells.astype(np.uint16, copy=False) if bytes_per_pixel < 4 else cells


def _unpack_segments(code: bytes, size: int) -> bytes:
    """Unpack `size` bytes of each segment and ignore the rest: for the few files that imagecodecs rejects."""
    count, *starts = struct.unpack_from("<16L", code)
    starts = [*starts[:count], len(code)]
    if sorted(starts) != starts or starts[0] < 64:
        raise Rejected("decoding_failed", "the RLE header has impossible segment offsets")
    planes = [_unpack_bits(code[at:end], size) for at, end in itertools.pairwise(starts)]
    return np.stack(planes[::-1], axis=1).tobytes()


def _unpack_bits(segment: bytes, size: int) -> np.ndarray:
    """Unpack `size` bytes of one segment, (size,) uint8.

    Source: DICOM PS3.5 G.3.2.
    """
    unpacked, at = bytearray(), 0
    while len(unpacked) < size and at < len(segment):
        count = segment[at]
        if count < 128:
            unpacked += segment[at + 1 : at + 2 + count]
            at += 2 + count
        else:
            unpacked += segment[at + 1 : at + 2] * (257 - count if count > 128 else 0)
            at += 2 if count > 128 else 1
    if len(unpacked) < size:
        raise Rejected("truncated", f"an RLE segment unpacks to {len(unpacked)} of {size} bytes")
    return np.frombuffer(bytes(unpacked[:size]), np.uint8)


def _run(decode: Callable[..., np.ndarray], *arguments: object, **options: object) -> np.ndarray:
    """Call a native decoder and turn anything that it raises, even a BaseException, into Rejected."""
    try:
        return decode(*arguments, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Rejected("decoding_failed", f"the decoder rejected the code stream ({type(error).__name__})") from None

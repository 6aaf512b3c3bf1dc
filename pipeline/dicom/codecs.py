"""This file decodes the compressed frames that a transfer syntax may hold, with imagecodecs."""

import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.dicom.rules import Rejected

EXTRA = "pip install 'ich-cache[codecs]'"


@dataclass(frozen=True, slots=True)
class Coding:
    """A compressed transfer syntax.

    Attributes:
        decoder: function of imagecodecs.
        can_lose: the coding can lose information; a file says in LossyImageCompression whether it did.
        always_loses: it cannot do otherwise.
    """

    decoder: str
    can_lose: bool = False
    always_loses: bool = False


# libjpeg-turbo is compiled to two depths, 8 and 12 bits, and to lossless up to 16: one function decodes them all.
CODINGS = {
    "1.2.840.10008.1.2.4.50": Coding("jpeg8_decode", True, True),
    "1.2.840.10008.1.2.4.51": Coding("jpeg8_decode", True, True),
    "1.2.840.10008.1.2.4.57": Coding("jpeg8_decode"),
    "1.2.840.10008.1.2.4.70": Coding("jpeg8_decode"),
    "1.2.840.10008.1.2.4.80": Coding("jpegls_decode"),
    "1.2.840.10008.1.2.4.81": Coding("jpegls_decode", True),
    "1.2.840.10008.1.2.4.90": Coding("jpeg2k_decode"),
    "1.2.840.10008.1.2.4.91": Coding("jpeg2k_decode", True),
    "1.2.840.10008.1.2.4.201": Coding("jpeg2k_decode"),
    "1.2.840.10008.1.2.4.202": Coding("jpeg2k_decode"),
    "1.2.840.10008.1.2.4.203": Coding("jpeg2k_decode", True),
    "1.2.840.10008.1.2.5": Coding("dicomrle_decode"),
}
RLE = "1.2.840.10008.1.2.5"
# End of image, end of code stream. Without it CharLS 2.4 looks for the end of a cut-off stream for up to 20 s, and
# the JPEG and JPEG 2000 decoders fill what is missing with grey.
_END = b"\xff\xd9"
# To an even length; real files have either.
_PADDING = b"\0\xff"


@lru_cache(maxsize=256)
def is_lossy(transfer_syntax: str, flag: str) -> bool:
    """Tell whether pixels went through lossy coding; a coding that can lose and does not deny it counts.

    Args:
        flag: LossyImageCompression (0028,2110): "00", "01" or "".
    """
    coding = CODINGS.get(transfer_syntax, Coding(""))
    return coding.always_loses or flag == "01" or (coding.can_lose and flag != "00")


def decode_frame(code: bytes, transfer_syntax: str, height: int, width: int, bytes_per_pixel: int) -> np.ndarray:
    """Decode one frame.

    Returns:
        (height, width) uint16: the cells, sign not applied.

    Raises:
        Rejected: no decoder, or it refused the code stream, or that holds another picture than the header says.
    """
    decode = _find_decoder(transfer_syntax)
    if transfer_syntax == RLE:
        return _decode_rle(decode, code, height, width, bytes_per_pixel)
    if not code[-64:].rstrip(_PADDING).endswith(_END):
        raise Rejected("truncated", "the code stream has no end marker")
    coded = coded_size(code)
    if coded != (height, width):
        raise Rejected("decoding_failed", f"the code stream says {coded}, the header {(height, width)}")
    cells = _run(decode, code)
    if cells.shape != (height, width) or cells.dtype.kind not in "iu" or cells.dtype.itemsize > 2:
        raise Rejected("decoding_failed", "the decoder returned another picture than the header says")
    return cells.astype(np.uint16, copy=False) if cells.dtype.kind == "u" else cells.astype(np.int16).view(np.uint16)


def coded_size(code: bytes) -> tuple[int, int] | None:
    """Read (height, width) of a one-component picture from its code stream; None where there is no such.

    A decoder allocates what the code stream says, so this is compared with the header before decoding.

    Source: ITU-T T.81 B.2.2 (SOFn), T.87 C.2.2 (SOF55), T.800 A.5.1 (SIZ).
    """
    try:
        if code[:4] == b"\xff\x4f\xff\x51":
            right, bottom, left, top = struct.unpack_from(">4L", code, 8)
            (components,) = struct.unpack_from(">H", code, 40)
            return (bottom - top, right - left) if components == 1 else None
        at = 2 if code[:2] == b"\xff\xd8" else len(code)
        while True:
            marker, length = struct.unpack_from(">HH", code, at)
            if (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)) or marker == 0xFFF7:
                height, width, components = struct.unpack_from(">HHB", code, at + 5)
                return (height, width) if components == 1 else None
            if marker < 0xFF00 or length < 2:
                return None
            at += 2 + length
    except struct.error:
        return None


def _find_decoder(transfer_syntax: str) -> Callable[..., np.ndarray]:
    if transfer_syntax not in CODINGS:
        raise Rejected("unsupported_coding", "no decoder is known for the transfer syntax")
    try:
        return getattr(importlib.import_module("imagecodecs"), CODINGS[transfer_syntax].decoder)
    except ImportError:
        raise Rejected("missing_decoder", f"the transfer syntax needs imagecodecs; run: {EXTRA}") from None


def _decode_rle(
    decode: Callable[..., np.ndarray], code: bytes, height: int, width: int, bytes_per_pixel: int
) -> np.ndarray:
    if len(code) < 64 or struct.unpack_from("<L", code)[0] != bytes_per_pixel:
        raise Rejected("decoding_failed", "the RLE header has not one segment a byte of a pixel")
    size = height * width * bytes_per_pixel
    # A pair of bytes unpacks to at most 128.
    if len(code) * 64 < size:
        raise Rejected("truncated", "the RLE segments are too short for the picture")
    dtype = np.dtype(f"<u{bytes_per_pixel}")
    unpacked = _run(decode, code, dtype)
    if len(unpacked) != size:
        raise Rejected("decoding_failed", f"the RLE segments unpack to {len(unpacked)} of {size} bytes")
    return np.frombuffer(unpacked, dtype).reshape(height, width).astype(np.uint16, copy=False)


def _run(decode: Callable[..., np.ndarray], *arguments: object, **options: object) -> np.ndarray:
    """Call a native decoder; whatever it raises, a Rust panic or a bare StopIteration included, is a reject."""
    try:
        return decode(*arguments, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Rejected("decoding_failed", f"the decoder refused the code stream ({type(error).__name__})") from None

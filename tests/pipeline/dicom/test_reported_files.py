"""Files like those in public bug reports give the right HU, or are rejected with the right code."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from pipeline.dicom.records import Reject, Slice
from testkit.dicom_files import (
    AXIAL,
    ENHANCED_CT,
    code_of,
    ct_dataset,
    ct_file,
    encode,
    frame_groups,
    gradient,
    read,
    read_one,
    to_hu,
)

J2K, JPEG_LS, LOSSLESS, RLE = (f"1.2.840.10008.1.2.{end}" for end in ("4.90", "4.80", "4.70", "5"))


def wrapped(code: bytes, dataset: Dataset, syntax: str) -> bytes:
    dataset.PixelData = encapsulate([code])
    return encode(dataset, syntax)


@pytest.mark.parametrize(
    "name",
    [
        *("j2k_jp2box", "j2k_trailing100", "j2k_unsigned13_pr1_bs16", "jll_fillbytes", "mlut_empty"),
        *("numframes_zero", "rle_extra1", "rle_trailing_zeros"),
    ],
)
def test_reported_files_give_their_original_pixels(test_data: Path, name: str) -> None:
    """All have the same 64 x 64 pixels; `numframes_zero` is not compressed, so it is the reference."""
    reference = to_hu(read_one((test_data / "reported/numframes_zero.dcm").read_bytes()))
    assert (reference.min(), reference.max()) == (-21, 646)
    np.testing.assert_array_equal(to_hu(read_one((test_data / f"reported/{name}.dcm").read_bytes())), reference)


def test_a_private_transfer_syntax_is_in_the_message(test_data: Path) -> None:
    (found,) = read((test_data / "reported/ge_private_ts.dcm").read_bytes())
    assert isinstance(found, Reject)
    assert found.code == "unsupported_coding"
    assert "1.2.840.113619.5.2" in found.message


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2.123", "1.2.276.0.7230010.9.88", "1.2.840.10008.1.2.4.55"])
@pytest.mark.parametrize("length", [10, 5000])
def test_an_unknown_transfer_syntax_is_in_the_message_for_any_pixel_data(syntax: str, length: int) -> None:
    dataset = ct_dataset(gradient())
    dataset.PixelData = encapsulate([b"\1" * length])
    data = encode(dataset, J2K).replace(J2K.encode(), syntax.encode())
    (found,) = read(data)
    assert isinstance(found, Reject)
    assert found.code == "unsupported_coding"
    assert syntax in found.message


# --- sign and precision ----------------------------------------------------------------------------------------------


def cells_of(values: np.ndarray, bits: int) -> np.ndarray:
    """Return values in two's complement of the given number of bits."""
    return (values.astype(np.int64) & ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def code_with(cells: np.ndarray, syntax: str, bits: int, *, signed: bool = False) -> bytes:
    if syntax == J2K:
        values = cells.astype(np.int16) if signed else cells
        return bytes(imagecodecs.jpeg2k_encode(values, codecformat="j2k", reversible=True, bitspersample=bits))
    if syntax == JPEG_LS:
        return bytes(imagecodecs.jpegls_encode(cells))
    return bytes(imagecodecs.ljpeg_encode(cells, bitspersample=bits))


@pytest.mark.parametrize("syntax", [J2K, JPEG_LS, LOSSLESS])
@pytest.mark.parametrize("stored_bits", [8, 12, 13, 16])
@pytest.mark.parametrize("coded_bits", [8, 12, 13, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_the_code_stream_determines_the_width_of_values(
    syntax: str, stored_bits: int, coded_bits: int, *, signed: bool
) -> None:
    """Files give the right values or are rejected; they never give wrong values."""
    if syntax == JPEG_LS:  # imagecodecs writes no other widths
        coded_bits = 8 if coded_bits == 8 else 16
    half = 1 << (coded_bits - 1)
    values = np.linspace(-half if signed else 0, half - 1 if signed else 2 * half - 1, 32 * 32).round().reshape(32, 32)
    changes = {"BitsAllocated": 16, "BitsStored": stored_bits, "PixelRepresentation": int(signed)}
    dataset = ct_dataset(values.astype(np.int32).astype(np.uint16), **changes)
    (found,) = read(wrapped(code_with(cells_of(values, coded_bits), syntax, coded_bits), dataset, syntax))
    if isinstance(found, Slice):
        np.testing.assert_array_equal(to_hu(found), values - 1024)
    else:
        assert found.code == "pixel_format"
        assert stored_bits < coded_bits


@pytest.mark.parametrize(("name", "coded_bits"), [("JLSL_08_07_0_1F", 7), ("JLSL_16_15_1_1F", 15)])
@pytest.mark.parametrize("stored_bits", [8, 12, 14, 15, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_a_jpeg_ls_code_stream_of_odd_width_determines_the_width_of_values(
    test_data: Path, name: str, coded_bits: int, stored_bits: int, *, signed: bool
) -> None:
    """The code streams have widths that imagecodecs does not write."""
    given = dcmread(test_data / f"odd/{name}.dcm")
    (code,) = generate_frames(given.PixelData, number_of_frames=1)
    assert code[code.index(b"\xff\xf7") + 4] == coded_bits
    cells = np.asarray(imagecodecs.jpegls_decode(code)).astype(np.int64) & ((1 << coded_bits) - 1)
    values = np.where(signed & (cells >= 1 << (coded_bits - 1)), cells - (1 << coded_bits), cells)
    changes = {"BitsAllocated": 16, "BitsStored": stored_bits, "PixelRepresentation": int(signed)}
    dataset = ct_dataset(cells.astype(np.uint16), **changes)
    (found,) = read(wrapped(code, dataset, JPEG_LS))
    if isinstance(found, Slice):
        np.testing.assert_array_equal(to_hu(found), values - 1024)
    else:
        assert found.code == "pixel_format"
        assert stored_bits < coded_bits


def test_negative_values_are_rejected_if_the_header_says_unsigned() -> None:
    values = gradient(32, 32) - 2000
    code = code_with(values, J2K, 16, signed=True)
    dataset = ct_dataset(values.view(np.uint16), PixelRepresentation=0)
    assert code_of(wrapped(code, dataset, J2K)) == "pixel_format"
    dataset = ct_dataset(values, PixelRepresentation=1)
    np.testing.assert_array_equal(read_one(wrapped(code, dataset, J2K)).stored, values)


# --- padding and wrappers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [J2K, JPEG_LS, LOSSLESS])
@pytest.mark.parametrize("padding", [b"\0", b"\xff", b"\0" * 65, b"\xff" * 1000, b"\0\xff" * 5000])
def test_padding_after_the_end_marker_is_ignored(syntax: str, padding: bytes) -> None:
    stored = gradient(32, 32, "uint16")
    found = read_one(wrapped(code_with(stored, syntax, 16) + padding, ct_dataset(stored), syntax))
    np.testing.assert_array_equal(found.stored, stored)


@pytest.mark.parametrize("tail", [b"\0", b"\x80", b"\0" * 7, b"\x05abcdef", b"\xff\x01"])
def test_rle_segments_may_be_longer_than_the_image(tail: bytes) -> None:
    stored = gradient(32, 32, "uint16")
    high, low = (_packed((stored >> shift).astype(np.uint8).tobytes()) + tail for shift in (8, 0))
    head = np.zeros(16, "<u4")
    head[:3] = 2, 64, 64 + len(high)
    np.testing.assert_array_equal(
        read_one(wrapped(head.tobytes() + high + low, ct_dataset(stored), RLE)).stored, stored
    )
    (found,) = read(wrapped(head.tobytes() + high + low[:200], ct_dataset(stored), RLE))
    assert isinstance(found, Reject)
    assert found.code == "truncated"


def _packed(plane: bytes) -> bytes:
    """Pack bytes as literal runs of 128 bytes."""
    return b"".join(b"\x7f" + plane[at : at + 128] for at in range(0, len(plane), 128))


def test_an_image_in_jp2_boxes_is_decoded() -> None:
    stored = gradient(32, 32, "uint16")
    code = bytes(imagecodecs.jpeg2k_encode(stored, codecformat="jp2", reversible=True))
    np.testing.assert_array_equal(read_one(wrapped(code, ct_dataset(stored), J2K)).stored, stored)
    for end in range(0, len(code) - 2, 7):
        assert code_of(wrapped(code[:end] or b"\0", ct_dataset(stored), J2K)) in ("truncated", "decoding_failed")


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["HU", "hu", "Hounsfield", "HOUNSFIELD UNITS", "Hounsfield Unit", "Hounsfield_Units"])
def test_rescale_type_may_be_hounsfield_in_words(words: str) -> None:
    assert to_hu(read_one(ct_file(gradient(), RescaleType=words)))[0, 0] == 900 - 1024


@pytest.mark.parametrize("words", ["US", "OD", "HU/2", "MGML", "HUX"])
def test_other_units_are_rejected(words: str) -> None:
    assert code_of(ct_file(gradient(), RescaleType=words)) == "rescale_type"


@pytest.mark.parametrize("items", [[], [Dataset()]])
def test_an_empty_modality_lut_is_ignored(items: list[Dataset]) -> None:
    assert to_hu(read_one(ct_file(gradient(), ModalityLUTSequence=Sequence(items))))[0, 0] == 900 - 1024


def test_a_modality_lut_is_rejected() -> None:
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [1, 0, 16], "HU"
    assert code_of(ct_file(gradient(), ModalityLUTSequence=Sequence([lut]))) == "bad_rescale"


@pytest.mark.parametrize("excess", [2, 1000, None])
def test_pixel_data_shorter_than_stated_are_truncated(excess: int | None) -> None:
    data = bytearray(ct_file(gradient()))
    at = data.rindex(b"\xe0\x7f\x10\0OW\0\0") + 8
    length = int.from_bytes(data[at : at + 4], "little")
    data[at : at + 4] = (0xFFFFFFFE if excess is None else length + excess).to_bytes(4, "little")
    assert code_of(bytes(data)) == "truncated"


@pytest.mark.parametrize("frames", [1, 3])
def test_shared_functional_groups_apply_to_all_frames(frames: int) -> None:
    stored = np.stack([gradient() + frame for frame in range(frames)])
    absent = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient"))
    dataset = ct_dataset(stored, SOPClassUID=ENHANCED_CT, NumberOfFrames=frames, **absent)
    dataset.SharedFunctionalGroupsSequence = Sequence([frame_groups(12.5, 0.5, -1024)])
    for number, found in enumerate(read(encode(dataset))):
        assert isinstance(found, Slice), found
        np.testing.assert_array_equal(to_hu(found), stored[number] * 0.5 - 1024)
        assert found.record.orientation == tuple(AXIAL)
        # A position that several frames share does not place them.
        assert found.record.position == ((0, 0, 12.5) if frames == 1 else None)


def test_a_reject_does_not_advise_a_setting_that_would_make_hu_wrong() -> None:
    (found,) = read(ct_file(gradient(), RescaleSlope=None))
    assert isinstance(found, Reject)
    assert "identity" not in found.message


# --- 32 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "dtype", "kept"),
    [
        (-32768, 32767, "int32", "int16"),
        (0, 65535, "int32", "uint16"),
        (0, 65535, "uint32", "uint16"),
        (-1, 32768, "int32", None),
        (0, 65536, "uint32", None),
        (-32769, 0, "int32", None),
    ],
)
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", RLE])
def test_32_bit_pixels_are_read_if_their_values_fit_16_bits(
    low: int, high: int, dtype: str, kept: str | None, syntax: str
) -> None:
    values = np.linspace(low, high, 120).round().reshape(12, 10).astype(dtype)
    dataset = ct_dataset(values)
    if syntax == RLE:
        dataset.PixelData = encapsulate([_rle(values)])
    (found,) = read(encode(dataset, syntax))
    if kept is None:
        assert isinstance(found, Reject)
        assert (found.code, found.message) == ("pixel_format", "32-bit values that do not fit 16 bits")
    else:
        assert isinstance(found, Slice)
        assert found.stored.dtype == kept
        assert found.record.signed == (kept == "int16")
        np.testing.assert_array_equal(to_hu(found), values.astype(float) - 1024)


def _rle(values: np.ndarray) -> bytes:
    cells = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4)
    planes = [_short(cells[:, byte].tobytes()) for byte in (3, 2, 1, 0)]
    head = np.zeros(16, "<u4")
    head[:5] = [4, *(64 + sum(map(len, planes[:number])) for number in range(4))]
    return head.tobytes() + b"".join(planes)


def _short(plane: bytes) -> bytes:
    return bytes([len(plane) - 1]) + plane


def test_float_pixel_data_are_rejected_by_name() -> None:
    dataset = ct_dataset(gradient())
    del dataset.PixelData
    dataset.BitsAllocated = dataset.BitsStored = 32
    dataset.FloatPixelData = gradient().astype(np.float32).tobytes()
    (found,) = read(encode(dataset))
    assert isinstance(found, Reject)
    assert found.code == "pixel_format"
    assert "Float Pixel Data" in found.message

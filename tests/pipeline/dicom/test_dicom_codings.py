"""Files in all codings give the right values, or the missing decoder is named."""

import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from pipeline.dicom import codecs
from pipeline.dicom import read as dicom
from pipeline.dicom.records import Reject, Slice
from pipeline.dicom.rejects import REJECT_CODES
from testkit.dicom_files import (
    KEEP,
    code_of,
    ct_dataset,
    ct_file,
    encode,
    files_below,
    gradient,
    read,
    read_one,
    to_hu,
)

CODINGS = "transfer_syntaxes/CTImage.dcm_"


def pydicom_hu(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    return dataset.pixel_array.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


@pytest.mark.parametrize(
    ("name", "largest_difference"),
    [
        ("BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2", 0),
        ("DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99", 0),
        ("JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90", 0),
        ("JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91", 5),
        ("JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80", 0),
        ("JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81", 1),
        ("JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70", 0),
        ("JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57", 0),
        ("JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50", 64),
        ("JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51", 36),
        ("LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1", 0),
        ("LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2", 0),
        ("RLELosslessTransferSyntax_1.2.840.10008.1.2.5", 0),
    ],
)
def test_all_codings_give_the_same_hu(test_data: Path, name: str, largest_difference: int) -> None:
    reference = read_one((test_data / "transfer_syntaxes/CTImage.dcm").read_bytes())
    found = read_one((test_data / f"{CODINGS}{name}.dcm").read_bytes())
    assert round(np.abs(to_hu(found) - to_hu(reference)).max()) == largest_difference
    assert (found.record.pixel_digest == reference.record.pixel_digest) == (largest_difference == 0)
    assert found.record.lossy == (largest_difference > 0)


@pytest.mark.parametrize(
    "name",
    ["JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55", "JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53"],
)
def test_a_retired_coding_is_rejected(test_data: Path, name: str) -> None:
    assert code_of((test_data / f"{CODINGS}{name}.dcm").read_bytes()) == "unsupported_coding"


def test_only_these_real_files_fail(test_data: Path) -> None:
    found = {path: read(path.read_bytes())[0] for path in files_below(test_data)}
    codes = {path.name: item.code for path, item in found.items() if isinstance(item, Reject)}
    failed = {name: code for name, code in codes.items() if REJECT_CODES[code][0] == "failed"}
    assert failed == {
        "ge_private_ts.dcm": "unsupported_coding",
        "eCT_Supplemental.dcm": "rescale_type",
        "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": "rescale_type",
        f"{Path(CODINGS).name}JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm": "unsupported_coding",
        f"{Path(CODINGS).name}JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm": "unsupported_coding",
    }


def test_hu_of_accepted_files_equal_those_of_pydicom(test_data: Path) -> None:
    compared = 0
    for path in files_below(test_data):
        for found in read(path.read_bytes()):
            if isinstance(found, Slice):
                try:
                    expected = pydicom_hu(path)
                except (RuntimeError, NotImplementedError):  # pydicom has no free decoder for JPEG lossless
                    continue
                np.testing.assert_array_equal(to_hu(found), expected, err_msg=str(path))
                compared += 1
    assert compared > 40


@pytest.mark.parametrize("syntax", ["201", "202", "203"])
def test_high_throughput_jpeg_2000_is_decoded(syntax: str) -> None:
    stored = gradient(64, 64, "uint16")
    dataset = ct_dataset(stored)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(imagecodecs.htj2k_encode(stored, reversible=True))])
    np.testing.assert_array_equal(read_one(encode(dataset, f"1.2.840.10008.1.2.4.{syntax}")).stored, stored)


def test_frames_of_a_compressed_file_are_read_one_by_one() -> None:
    stored = np.stack([gradient(64, 64) + frame for frame in range(3)])
    dataset = ct_dataset(stored, NumberOfFrames=3)
    codes = [imagecodecs.jpegls_encode(frame.view(np.uint16)) for frame in stored]
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(code) for code in codes])
    data = encode(dataset, "1.2.840.10008.1.2.4.80")
    for frame, one in enumerate(read(data)):
        np.testing.assert_array_equal(one.stored, stored[frame])
        assert one.record.position is None  # a shared position does not place three slices
        assert one.record.instance_number == frame + 1
    (second,) = dicom.read_slices(data, KEEP, None, (1, 2))
    np.testing.assert_array_equal(second.stored, stored[1])


def test_lossless_copies_have_the_same_pixel_digest(test_data: Path) -> None:
    for path in sorted((test_data / "head_ct_tilted").glob("*.dcm"))[:3]:
        plain = read_one(path.read_bytes())
        dataset = pydicom.dcmread(path)
        cells = plain.stored.view(np.uint16)
        for syntax, encoder in (
            ("1.2.840.10008.1.2.4.80", "jpegls_encode"),
            ("1.2.840.10008.1.2.4.70", "ljpeg_encode"),
        ):
            dataset.PixelData = pydicom.encaps.encapsulate([bytes(getattr(imagecodecs, encoder)(cells))])
            assert read_one(encode(dataset, syntax)).record.pixel_digest == plain.record.pixel_digest
        dataset.PixelData = plain.stored.tobytes()
        assert read_one(encode(dataset, ImplicitVRLittleEndian)).record.pixel_digest == plain.record.pixel_digest


@pytest.mark.parametrize(
    "changes", [{"RescaleSlope": 2}, {"RescaleIntercept": 0}, {"PixelRepresentation": 0}, {"PixelPaddingValue": 7}]
)
def test_pixel_digest_depends_on_rescale_sign_and_padding(changes: dict) -> None:
    one, other = read_one(ct_file(gradient())), read_one(ct_file(gradient(), **changes))
    assert one.record.pixel_digest != other.record.pixel_digest


# --- decoders --------------------------------------------------------------------------------------------------------


def test_a_missing_decoder_is_reported_with_its_extra(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    (found,) = read((test_data / "odd/bad_sequence.dcm").read_bytes())
    assert found.code == "missing_decoder"
    assert "ich-cache[codecs]" in found.message


def test_any_exception_of_a_decoder_gives_a_reject(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def fail(error: BaseException) -> None:
        raise error

    data = (test_data / f"{CODINGS}JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm").read_bytes()
    for error in (Panic(), StopIteration(), MemoryError(), ValueError()):
        monkeypatch.setattr(imagecodecs, "jpegls_decode", lambda code, error=error: fail(error))
        assert code_of(data) == "decoding_failed"
    monkeypatch.setattr(imagecodecs, "jpegls_decode", lambda code: fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        read(data)


@pytest.mark.parametrize("encoder", ["jpegls_encode", "jpeg2k_encode"])
def test_a_code_stream_of_another_size_is_rejected_before_decoding(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    syntax = {"jpegls_encode": "1.2.840.10008.1.2.4.80", "jpeg2k_encode": "1.2.840.10008.1.2.4.90"}[encoder]
    dataset = ct_dataset(gradient(64, 64, "uint16"), Rows=32)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(getattr(imagecodecs, encoder)(gradient(64, 64, "uint16")))])
    monkeypatch.setattr(codecs, "_run", None)
    assert code_of(encode(dataset, syntax)) == "decoding_failed"


def test_a_truncated_code_stream_is_rejected_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ct_dataset(gradient(64, 64))
    code = bytes(imagecodecs.jpegls_encode(gradient(64, 64).view(np.uint16)))
    dataset.PixelData = pydicom.encaps.encapsulate([code[: len(code) // 4 * 2]])
    monkeypatch.setattr(codecs, "_run", None)
    assert code_of(encode(dataset, "1.2.840.10008.1.2.4.80")) == "truncated"

import hashlib
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from pipeline.catalog import Reading
from pipeline.dicom import codecs
from pipeline.dicom import header as dicom_header
from pipeline.dicom import read as dicom
from pipeline.dicom import rules as dicom_rules
from pipeline.records import Reject, Slice
from tests.pipeline.dicom_files import ct_dataset, ct_file, deflate, encode, enhanced_file, frame_groups, gradient

KEEP = Reading(patient_ids="keep")
CODINGS = "transfer_syntaxes/CTImage.dcm_"


def read(data: bytes, reading: Reading = KEEP, key: bytes | None = None) -> list[Slice | Reject]:
    return list(dicom.read_slices(data, reading, key))


def read_one(data: bytes, reading: Reading = KEEP) -> Slice:
    (found,) = read(data, reading)
    assert isinstance(found, Slice), found
    return found


def code_of(data: bytes, reading: Reading = KEEP) -> str:
    (found,) = read(data, reading)
    assert isinstance(found, Reject), found.record
    assert found.code in dicom_rules.REJECT_CODES
    return found.code


def to_hu(found: Slice) -> np.ndarray:
    return found.stored.astype(np.float64) * found.record.slope + found.record.intercept


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("LICENSE", "README.md"))


def oracle_hu(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    return dataset.pixel_array.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


# --- real files ----------------------------------------------------------------------------------------------------


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
def test_each_coding_gives_the_same_hu(test_data: Path, name: str, largest_difference: int) -> None:
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


def test_hu_equal_pydicoms_on_every_accepted_file(test_data: Path) -> None:
    compared = 0
    for path in files_below(test_data):
        for found in read(path.read_bytes()):
            if isinstance(found, Slice):
                try:
                    expected = oracle_hu(path)
                except (RuntimeError, NotImplementedError):  # pydicom has no free decoder for JPEG lossless
                    continue
                np.testing.assert_array_equal(to_hu(found), expected, err_msg=str(path))
                compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("mixed_series/S21570/S1000/I10", "localizer"),
        ("mixed_series/S21570/S1000/DIRFILE", "dicomdir"),
        ("mixed_series/S21570/S4010/I10", "not_ct"),
        ("mixed_series/S21570/S4010/I60", "not_ct"),
        ("transfer_syntaxes/no-pixel-data.dcm", "not_ct"),
        ("transfer_syntaxes/no-pixel-spacing.dcm", "not_ct"),
        ("transfer_syntaxes/LICENSE", "not_dicom"),
        ("odd/parametric_map_float.dcm", "not_ct"),
        ("odd/liver_deflate.dcm", "not_ct"),
        ("odd/RG3_J2KI.dcm", "not_ct"),
        ("odd/emri_small_jpeg_2k_lossless_too_short.dcm", "not_ct"),
    ],
)
def test_what_is_no_slice_is_turned_away_with_its_reason(test_data: Path, name: str, code: str) -> None:
    assert code_of((test_data / name).read_bytes()) == code


def test_a_perfusion_map_is_rejected_frame_by_frame(test_data: Path) -> None:
    found = read((test_data / "odd/eCT_Supplemental.dcm").read_bytes())
    assert [(reject.code, reject.frame) for reject in found] == [("rescale_type", 1), ("rescale_type", 2)]


# --- the two ways through the header -------------------------------------------------------------------------------


def without_quick_way(data: bytes) -> list[Slice | Reject]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom_header, "_walk", lambda *arguments: None)
        return read(data)


def assert_both_ways_agree(data: bytes) -> None:
    quick, full = read(data), without_quick_way(data)
    assert len(quick) == len(full)
    for one, other in zip(quick, full, strict=True):
        if isinstance(one, Slice):
            assert isinstance(other, Slice)
            assert (one.record, one.padding) == (other.record, other.padding)
            np.testing.assert_array_equal(one.stored, other.stored)
        else:
            assert one == other


def test_both_ways_agree_on_every_real_file(test_data: Path) -> None:
    for path in files_below(test_data):
        assert_both_ways_agree(path.read_bytes())


def test_plain_files_take_the_quick_way(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_header, "read_dataset", None)
    for name in (
        "head_ct_tilted/01.dcm",
        "transfer_syntaxes/CTImage.dcm",
        f"{CODINGS}RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm",
    ):
        read_one((test_data / name).read_bytes())


TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\\"), max_size=20)
NUMBERS = st.sampled_from(["0", "-1024", "1", "0.7", " 1.0 ", "+3", "1e2", "", "x", "nan", "-2000.5"])


@given(
    implicit=st.booleans(),
    stated_otherwise=st.booleans(),
    texts=st.dictionaries(st.sampled_from(["StudyDescription", "PatientName", "ImageComments", "PatientID"]), TEXT),
    numbers=st.dictionaries(
        st.sampled_from(["RescaleSlope", "RescaleIntercept", "SliceLocation", "InstanceNumber"]), NUMBERS
    ),
    nested=st.integers(0, 3),
    private=st.binary(max_size=40),
)
def test_both_ways_agree_on_made_headers(
    implicit: bool, stated_otherwise: bool, texts: dict, numbers: dict, nested: int, private: bytes
) -> None:
    dataset = ct_dataset(gradient())
    dataset.SpecificCharacterSet = "ISO_IR 100"
    for _ in range(nested):
        inner = Dataset()
        inner.ReferencedImageSequence, inner.RescaleSlope = dataset.get("ReferencedImageSequence", []), 5
        dataset.ReferencedImageSequence = Sequence([inner])
    dataset.add_new(0x00090010, "LO", "MARK")
    dataset.add_new(0x00091001, "UN", private)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in texts.items():
            dataset[name] = pydicom.DataElement(pydicom.datadict.tag_for_keyword(name), "LO", value)
        for name, value in numbers.items():
            tag = pydicom.datadict.tag_for_keyword(name)
            dataset[name] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(tag), "DS", len(value), value.encode(), 0, False, True
            )
        codings = [encode(dataset, ImplicitVRLittleEndian), encode(dataset, ExplicitVRLittleEndian)]
    data, other = codings if implicit else codings[::-1]
    if stated_otherwise:  # a data set that is not coded as its meta information says
        first = b"\x08\0\x05\0"
        data = other[: other.index(first)] + data[data.index(first) :]
    assert_both_ways_agree(data)


# --- values --------------------------------------------------------------------------------------------------------


@given(
    bits=st.integers(8, 16),
    signed=st.booleans(),
    junk=st.integers(0, 2**16 - 1),
    slope=st.sampled_from([1, 0.7, 2.0002442, 0.1]),
    syntax=st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]),
    seed=st.integers(0, 99),
)
def test_junk_above_bits_stored_is_dropped(
    bits: int, signed: bool, junk: int, slope: float, syntax: str, seed: int
) -> None:
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    values = np.random.default_rng(seed).integers(low, high, (9, 7))
    mask = (1 << bits) - 1
    cells = ((values & mask) | (junk & ~mask)).astype(np.uint16)
    dataset = ct_dataset(cells, BitsStored=bits, PixelRepresentation=int(signed), RescaleSlope=slope)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = cells.astype(">u2").tobytes()
    found = read_one(encode(dataset, syntax))
    np.testing.assert_array_equal(found.stored, values)
    assert found.stored.dtype == (np.int16 if signed else np.uint16)
    np.testing.assert_array_equal(to_hu(found), values * slope - 1024.0)


def test_plain_values_are_a_view_of_the_file() -> None:
    data = bytearray(ct_file(gradient(dtype="uint16"), BitsStored=12))
    found = read_one(data)
    assert np.shares_memory(found.stored, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("value", "limit", "expected"),
    [(-2000, None, (-2000, -2000)), (-1500, -2000, (-2000, -1500)), (-2000, -1500, (-2000, -1500)), (None, None, None)],
)
def test_padding_is_read_in_stored_values(value: int | None, limit: int | None, expected: object) -> None:
    data = ct_file(gradient(), PixelPaddingValue=value, PixelPaddingRangeLimit=limit)
    assert read_one(data).padding == expected


def test_padding_declared_in_16_bits_of_12_unsigned_ones_does_not_become_bone() -> None:
    cells = np.full((4, 4), 1030, np.uint16)
    cells[0] = 63536  # -2000 in 16 bits; its low 12 bits are 2096
    found = read_one(ct_file(cells, BitsStored=12, PixelPaddingValue=63536))
    assert (found.stored[0] == found.padding[0]).all()
    assert (found.stored[1:] == 1030).all()


def test_monochrome1_does_not_invert_hu() -> None:
    found = read_one(ct_file(gradient(), PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(found.stored, gradient())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"RescaleSlope": None}, "no_rescale"),
        ({"RescaleIntercept": None}, "no_rescale"),
        ({"RescaleType": "US"}, "rescale_type"),
        ({"RescaleSlope": 0}, "bad_rescale"),
        ({"RescaleSlope": "1e30"}, "bad_rescale"),
        ({"Modality": "MR"}, "not_ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not_ct"),
        ({"PhotometricInterpretation": "RGB"}, "colour"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "not_axial"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.6, -0.8]}, "not_axial"),
        ({"SOPInstanceUID": "1.2,3\n"}, "damaged_header"),
        ({"SeriesInstanceUID": None}, "damaged_header"),
        ({"Rows": 0}, "damaged_header"),
        ({"Rows": 60000, "Columns": 60000}, "too_large"),
        ({"NumberOfFrames": 2_000_000_000}, "too_large"),
        ({"NumberOfFrames": 5}, "truncated"),
        ({"Rows": 13}, "truncated"),
        ({"BitsStored": 7}, "pixel_format"),
        ({"HighBit": 14}, "pixel_format"),
        ({"PixelRepresentation": None}, "pixel_format"),
    ],
)
def test_reject_codes(changes: dict, code: str) -> None:
    assert code_of(ct_file(gradient(), **changes)) == code


def test_missing_rescale_can_be_identity_by_policy_but_another_unit_cannot() -> None:
    identity = Reading(missing_rescale="identity", patient_ids="keep")
    bare = {"RescaleSlope": None, "RescaleIntercept": None}
    found = read_one(ct_file(gradient(), **bare), identity)
    assert (found.record.slope, found.record.intercept) == (1, 0)
    assert code_of(ct_file(gradient(), **bare, RescaleType="US"), identity) == "rescale_type"


def test_no_pixels_and_too_few() -> None:
    dataset = ct_dataset(gradient())
    data = encode(dataset)
    assert code_of(data[:-50]) == "truncated"
    del dataset.PixelData
    assert code_of(encode(dataset)) == "no_pixels"


def test_rsna_identifiers_pass() -> None:
    names = {"SOPInstanceUID": "ID_000039fa0", "StudyInstanceUID": "ID_9a", "SeriesInstanceUID": "ID_8b"}
    absent = dict.fromkeys(("InstanceNumber", "SliceLocation", "Manufacturer"))
    record = read_one(ct_file(gradient(), **names, **absent)).record
    assert record.sop_instance_uid == "ID_000039fa0"
    assert (record.slice_location, record.instance_number, record.manufacturer) == (None, None, "other")


# --- the 12-bit wrap -----------------------------------------------------------------------------------------------


def wrapped_head(padding: int, air: int, noise: int, metal: int) -> np.ndarray:
    """HU of a disc of brain in a ring of skull with a piece of metal, in air, in a field of view with padding."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    radius = np.hypot(y, x)
    hu = np.where(radius < 0.97, air, padding)
    hu[radius < 0.7] = 1500
    hu[radius < 0.62] = 35
    hu[(radius > 0.62) & (radius < 0.66) & (x > 0.3)] = metal
    # Noise of air; at the head's edge partial volume raises every pixel.
    hu += np.where((hu == air) & (radius > 0.76) & (np.arange(96) % 3 == 0), noise, 0)
    return hu


@pytest.mark.parametrize("intercept", [0, 1])
@pytest.mark.parametrize(
    ("padding", "air", "noise", "metal"),
    [(-2000, -1000, -30, 3071), (-1024, -990, -90, 2100), (-2000, -1024, -200, 1999), (-2047, -1000, 0, 3000)],
)
def test_wrapped_values_come_back(intercept: int, padding: int, air: int, noise: int, metal: int) -> None:
    hu = wrapped_head(padding, air, noise, metal)
    cells = ((hu - intercept) % 4096).astype(np.uint16)
    data = ct_file(cells, BitsStored=12, RescaleIntercept=intercept)
    repaired = read_one(data, Reading(repair="rsna_12bit_wrap", patient_ids="keep"))
    np.testing.assert_array_equal(to_hu(repaired), hu)
    assert (repaired.record.repair, repaired.record.signed) == ("rsna_12bit_wrap", True)
    assert to_hu(read_one(data)).min() >= 0  # never by default


def test_other_files_are_not_repaired() -> None:
    reading = Reading(repair="rsna_12bit_wrap", patient_ids="keep")
    for changes in ({"RescaleIntercept": -1024}, {"PixelRepresentation": 1, "RescaleIntercept": 0}):
        assert read_one(ct_file(gradient(dtype="uint16"), BitsStored=12, **changes), reading).record.repair == ""


# --- several frames ------------------------------------------------------------------------------------------------


def test_an_enhanced_ct_has_values_and_position_by_frame() -> None:
    stored = np.stack([gradient() + 100 * frame for frame in range(4)])
    groups = [frame_groups(5.0 * frame, 1 + frame / 4, -1000 - frame) for frame in range(4)]
    data = enhanced_file(stored, groups)
    found = read(data)
    assert [one.record.frame for one in found] == [1, 2, 3, 4]
    assert [one.record.position[2] for one in found] == [0, 5, 10, 15]
    for frame, one in enumerate(found):
        np.testing.assert_array_equal(to_hu(one), stored[frame] * (1 + frame / 4) - 1000 - frame)
    part = list(dicom.read_slices(data, KEEP, None, (1, 3)))
    assert [one.record for one in part] == [one.record for one in found[1:3]]
    assert dicom.read_slices(data, KEEP, None).num_frames == 4


def test_a_frame_without_hu_leaves_the_others() -> None:
    stored = np.stack([gradient()] * 3)
    groups = [frame_groups(0, 1, 0), frame_groups(1, 1, 0, "US"), frame_groups(2, 1, 0)]
    found = read(enhanced_file(stored, groups))
    assert [isinstance(one, Slice) for one in found] == [True, False, True]
    assert (found[1].code, found[1].frame) == ("rescale_type", 2)


def test_frames_of_a_compressed_file_are_read_one_by_one() -> None:
    stored = np.stack([gradient(64, 64) + frame for frame in range(3)])
    dataset = ct_dataset(stored, NumberOfFrames=3)
    codes = [imagecodecs.jpegls_encode(frame.view(np.uint16)) for frame in stored]
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(code) for code in codes])
    data = encode(dataset, "1.2.840.10008.1.2.4.80")
    for frame, one in enumerate(read(data)):
        np.testing.assert_array_equal(one.stored, stored[frame])
        assert one.record.position is None  # one position for three slices places none
        assert one.record.instance_number == frame + 1
    (second,) = dicom.read_slices(data, KEEP, None, (1, 2))
    np.testing.assert_array_equal(second.stored, stored[1])


def test_the_number_of_frames_is_known_before_any_is_decoded() -> None:
    def num_frames(data: bytes) -> int:
        return dicom.read_slices(data, KEEP, None).num_frames

    assert num_frames(b"") == 1
    assert num_frames(ct_file(gradient())) == 1
    assert num_frames(ct_file(gradient(), NumberOfFrames=1234)) == 1  # its pixels are too few for that
    assert num_frames(ct_file(gradient(), NumberOfFrames=1234).replace(b"1234", b"many")) == 1


# --- files that are not as they should be --------------------------------------------------------------------------


def test_a_file_without_preamble_is_read() -> None:
    data = ct_file(gradient())
    for bare in (data[132:], data[data.index(b"\x08\0\x16\0") :]):
        np.testing.assert_array_equal(read_one(bare).stored, gradient())


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 200, b"ID,Label\n" * 99, b"PK\3\4" + b"\0" * 400, b"\x08\0" * 500])
def test_what_is_not_dicom_is_said_to_be_so(data: bytes) -> None:
    assert code_of(data) in ("not_dicom", "damaged_header")


def test_a_deflated_bomb_is_refused_before_it_is_inflated() -> None:
    plain = ct_file(gradient())
    begin = plain.index(b"\x08\0\x16\0")
    head = encode(ct_dataset(gradient()), DeflatedExplicitVRLittleEndian)
    head = head[: head.index(b"1.2.840.10008.1.2.1.99") + 22]
    good = head + deflate(plain[begin:])
    np.testing.assert_array_equal(read_one(good).stored, gradient())
    assert code_of(head + deflate(plain[begin:] + bytes(40 << 20))) == "too_large"


def test_an_rle_bomb_is_refused_before_it_is_decoded() -> None:
    dataset = ct_dataset(gradient(), Rows=4096, Columns=4096)
    code = np.array([2, 64, 64] + [0] * 13, "<u4").tobytes() + b"\x81\0" * 100
    dataset.PixelData = pydicom.encaps.encapsulate([code])
    assert code_of(encode(dataset, RLELossless)) == "truncated"


@pytest.mark.parametrize("encoder", ["jpegls_encode", "jpeg2k_encode"])
def test_a_code_stream_of_another_size_is_refused_before_it_is_decoded(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    syntax = {"jpegls_encode": "1.2.840.10008.1.2.4.80", "jpeg2k_encode": "1.2.840.10008.1.2.4.90"}[encoder]
    dataset = ct_dataset(gradient(64, 64, "uint16"), Rows=32)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(getattr(imagecodecs, encoder)(gradient(64, 64, "uint16")))])
    monkeypatch.setattr(codecs, "_run", None)
    assert code_of(encode(dataset, syntax)) == "decoding_failed"


def test_a_cut_off_code_stream_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ct_dataset(gradient(64, 64))
    code = bytes(imagecodecs.jpegls_encode(gradient(64, 64).view(np.uint16)))
    dataset.PixelData = pydicom.encaps.encapsulate([code[: len(code) // 4 * 2]])
    monkeypatch.setattr(codecs, "_run", None)
    assert code_of(encode(dataset, "1.2.840.10008.1.2.4.80")) == "truncated"


def test_a_panicking_decoder_is_a_reject(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_missing_decoder_names_the_extra(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    (found,) = read((test_data / "odd/bad_sequence.dcm").read_bytes())
    assert found.code == "missing_decoder"
    assert "ich-cache[codecs]" in found.message


def test_deep_nesting_is_survived() -> None:
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    data = ct_file(gradient())
    at = data.index(b"\x08\0\x60\0CS")
    assert isinstance(read(data[:at] + item * 20_000 + data[at:])[0], Reject)


def test_high_throughput_jpeg_2000_is_decoded() -> None:
    stored = gradient(64, 64, "uint16")
    dataset = ct_dataset(stored)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(imagecodecs.htj2k_encode(stored, reversible=True))])
    np.testing.assert_array_equal(read_one(encode(dataset, "1.2.840.10008.1.2.4.201")).stored, stored)


# --- privacy -------------------------------------------------------------------------------------------------------


def test_patients_are_hashed_with_the_key() -> None:
    hashing = Reading()
    (one,), (same,), (other,) = (
        read(ct_file(gradient(), PatientID=patient), hashing, b"k" * 32) for patient in ("A7", " A7 ", "A8")
    )
    assert one.record.patient_id == same.record.patient_id != other.record.patient_id
    assert one.record.patient_id == hashlib.blake2b(b"A7", key=b"k" * 32, digest_size=16).hexdigest()
    (rekeyed,) = read(ct_file(gradient(), PatientID="A7"), hashing, b"j" * 32)
    assert rekeyed.record.patient_id != one.record.patient_id


def test_the_study_stands_for_an_empty_patient() -> None:
    for changes in ({"PatientID": None}, {"PatientID": " "}):
        record = read_one(ct_file(gradient(), **changes)).record
        assert (record.patient_id, record.patient_from_study) == ("study:1.2.3", True)
        (hashed,) = read(ct_file(gradient(), **changes), Reading(), b"k" * 32)
        assert hashed.record.patient_id == hashlib.blake2b(b"study:1.2.3", key=b"k" * 32, digest_size=16).hexdigest()
    assert not read_one(ct_file(gradient())).record.patient_from_study


TEXT_VRS = {"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"}
MARK = "QZMARK"


@pytest.mark.parametrize("broken", [False, True])
def test_no_text_of_the_file_leaves_it(
    broken: bool, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ct_dataset(gradient())
    inner = Dataset()
    for target in (dataset, inner):
        for tag, (vr, _, _, _, keyword) in pydicom.datadict.DicomDictionary.items():
            if (
                vr in TEXT_VRS
                and 0x0008 <= tag >> 16 <= 0x4010
                and keyword not in ("Modality", "PhotometricInterpretation", "SpecificCharacterSet", "RescaleType")
            ):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    target.add(pydicom.DataElement(tag, vr, MARK, validation_mode=pydicom.config.IGNORE))
        target.add_new(0x00091001, "LO", MARK)
    dataset.RequestAttributesSequence = Sequence([inner])
    dataset.add_new(0x00091002, "UN", MARK.encode())
    data = encode(dataset)
    if broken:
        data = data[:-10]
    caplog.clear()  # of what writing said
    caplog.set_level(logging.DEBUG)
    (found,) = read(data, Reading(), b"k" * 32)
    assert isinstance(found, Reject if broken else Slice)
    assert MARK not in repr(found.message if broken else found.record)
    out, err = capfd.readouterr()
    assert MARK not in out + err + caplog.text


def test_nothing_is_printed_or_warned_for_rsna_identifiers(
    capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    data = ct_file(gradient(), SOPInstanceUID="ID_1", StudyInstanceUID="ID_2", SeriesInstanceUID="ID_3")
    caplog.clear()  # of what writing said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_one(data)
        without_quick_way(data)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


# --- the same content ----------------------------------------------------------------------------------------------


def test_losslessly_coded_copies_have_the_same_pixel_digest(test_data: Path) -> None:
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
def test_another_meaning_gives_another_pixel_digest(changes: dict) -> None:
    one, other = read_one(ct_file(gradient())), read_one(ct_file(gradient(), **changes))
    assert one.record.pixel_digest != other.record.pixel_digest


def test_every_reject_code_has_a_class_and_a_sentence() -> None:
    for kind, sentence in dicom_rules.REJECT_CODES.values():
        assert kind in ("not_dicom", "not_a_slice", "failed")
        assert sentence.endswith(".")


def test_damaged_files_give_a_slice_or_a_reject_within_limits(test_data: Path) -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "benchmarks/fuzz.py", "--mutants", "300", "--seed", "1"]
    environment = os.environ | {"ICH_TEST_DATA": str(test_data.resolve()), "PYTHONPATH": str(root)}
    campaign = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert "failures: 0" in campaign.stdout

"""Which files are slices, how their values are interpreted, and multi-frame files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline import kernel
from pipeline.dicom import read as dicom
from pipeline.dicom import rejects
from pipeline.dicom.records import Slice
from pipeline.planning.catalog import Reading, Window
from testkit.dicom_files import (
    KEEP,
    code_of,
    ct_dataset,
    ct_file,
    encode,
    enhanced_file,
    frame_groups,
    gradient,
    read,
    read_one,
    to_hu,
)

# --- which files are slices ------------------------------------------------------------------------------------------


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
def test_other_real_files_are_rejected_with_their_reason(test_data: Path, name: str, code: str) -> None:
    assert code_of((test_data / name).read_bytes()) == code


def test_a_perfusion_map_is_rejected_frame_by_frame(test_data: Path) -> None:
    found = read((test_data / "odd/eCT_Supplemental.dcm").read_bytes())
    assert [(reject.code, reject.frame) for reject in found] == [("rescale_type", 1), ("rescale_type", 2)]


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


def test_reject_codes_have_a_class_and_a_description() -> None:
    for kind, sentence in rejects.REJECT_CODES.values():
        assert kind in ("not_dicom", "not_a_slice", "failed")
        assert sentence.endswith(".")


def test_rsna_identifiers_are_accepted() -> None:
    names = {"SOPInstanceUID": "ID_000039fa0", "StudyInstanceUID": "ID_9a", "SeriesInstanceUID": "ID_8b"}
    absent = dict.fromkeys(("InstanceNumber", "SliceLocation", "Manufacturer"))
    record = read_one(ct_file(gradient(), **names, **absent)).record
    assert record.sop_instance_uid == "ID_000039fa0"
    assert (record.slice_location, record.instance_number, record.manufacturer) == (None, None, "other")


def test_a_file_without_preamble_is_read() -> None:
    data = ct_file(gradient())
    for bare in (data[132:], data[data.index(b"\x08\0\x16\0") :]):
        np.testing.assert_array_equal(read_one(bare).stored, gradient())


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 200, b"ID,Label\n" * 99, b"PK\3\4" + b"\0" * 400, b"\x08\0" * 500])
def test_other_files_are_not_dicom(data: bytes) -> None:
    assert code_of(data) in ("not_dicom", "damaged_header")


# --- values ----------------------------------------------------------------------------------------------------------


@given(
    bits=st.integers(8, 16),
    signed=st.booleans(),
    junk=st.integers(0, 2**16 - 1),
    slope=st.sampled_from([1, 0.7, 2.0002442, 0.1]),
    syntax=st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]),
    seed=st.integers(0, 99),
)
def test_bits_above_bits_stored_are_ignored(
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


def test_16_bit_padding_of_12_bit_pixels_does_not_become_bone() -> None:
    cells = np.full((4, 4), 1030, np.uint16)
    cells[0] = 63536  # -2000 in 16 bits; its low 12 bits are 2096
    found = read_one(ct_file(cells, BitsStored=12, PixelPaddingValue=63536))
    assert (found.stored[0] == found.padding[0]).all()
    assert (found.stored[1:] == 1030).all()


@pytest.mark.parametrize(
    ("stored", "changes", "grey"),
    [
        (-1500, {"RescaleIntercept": 0, "PixelPaddingValue": -1500}, 0),
        (3000, {"RescaleIntercept": 0, "PixelPaddingValue": 2900, "PixelPaddingRangeLimit": 3100}, 0),
        (-2000, {}, 0),  # -3024 HU without PixelPaddingValue, as in RSNA 2019
        (31024, {}, 255),  # metal of 30,000 HU
    ],
)
def test_padding_is_black_and_metal_white_in_every_window(stored: int, changes: dict, grey: int) -> None:
    found = read_one(ct_file(np.full((6, 6), stored, np.int16), **changes))
    windows = (Window("brain", 40, 80), Window("subdural", 50, 130), Window("bone", 600, 2800))
    slope, intercept = found.record.slope, found.record.intercept
    assert (kernel.grey_levels(found.stored, slope, intercept, found.padding, windows) == grey).all()


def test_monochrome1_does_not_invert_hu() -> None:
    found = read_one(ct_file(gradient(), PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(found.stored, gradient())


def test_a_missing_rescale_may_be_identity_but_another_unit_is_always_rejected() -> None:
    identity = Reading(missing_rescale="identity", patient_ids="keep")
    bare = {"RescaleSlope": None, "RescaleIntercept": None}
    found = read_one(ct_file(gradient(), **bare), identity)
    assert (found.record.slope, found.record.intercept) == (1, 0)
    assert code_of(ct_file(gradient(), **bare, RescaleType="US"), identity) == "rescale_type"


# --- the 12-bit wrap -------------------------------------------------------------------------------------------------


def wrapped_head(padding: int, air: int, noise: int, metal: int) -> np.ndarray:
    """Return HU of a disc of brain in a ring of skull with a piece of metal, surrounded by air and padding."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    radius = np.hypot(y, x)
    hu = np.where(radius < 0.97, air, padding)
    hu[radius < 0.7] = 1500
    hu[radius < 0.62] = 35
    hu[(radius > 0.62) & (radius < 0.66) & (x > 0.3)] = metal
    # Noise in the air, but not at the edge of the head, where partial volume raises all pixels.
    hu += np.where((hu == air) & (radius > 0.76) & (np.arange(96) % 3 == 0), noise, 0)
    return hu


@pytest.mark.parametrize("intercept", [0, 1])
@pytest.mark.parametrize(
    ("padding", "air", "noise", "metal"),
    [(-2000, -1000, -30, 3071), (-1024, -990, -90, 2100), (-2000, -1024, -200, 1999), (-2047, -1000, 0, 3000)],
)
def test_wrapped_values_are_restored(intercept: int, padding: int, air: int, noise: int, metal: int) -> None:
    hu = wrapped_head(padding, air, noise, metal)
    cells = ((hu - intercept) % 4096).astype(np.uint16)
    data = ct_file(cells, BitsStored=12, RescaleIntercept=intercept)
    repaired = read_one(data, Reading(repair="rsna_12bit_wrap", patient_ids="keep"))
    np.testing.assert_array_equal(to_hu(repaired), hu)
    assert (repaired.record.repair, repaired.record.signed) == ("rsna_12bit_wrap", True)
    assert to_hu(read_one(data)).min() >= 0  # not repaired by default


def test_other_files_are_not_repaired() -> None:
    reading = Reading(repair="rsna_12bit_wrap", patient_ids="keep")
    for changes in ({"RescaleIntercept": -1024}, {"PixelRepresentation": 1, "RescaleIntercept": 0}):
        assert read_one(ct_file(gradient(dtype="uint16"), BitsStored=12, **changes), reading).record.repair == ""


# --- several frames --------------------------------------------------------------------------------------------------


def test_frames_of_an_enhanced_ct_have_their_own_rescale_and_position() -> None:
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


def test_a_rejected_frame_does_not_affect_the_others() -> None:
    stored = np.stack([gradient()] * 3)
    groups = [frame_groups(0, 1, 0), frame_groups(1, 1, 0, "US"), frame_groups(2, 1, 0)]
    found = read(enhanced_file(stored, groups))
    assert [isinstance(one, Slice) for one in found] == [True, False, True]
    assert (found[1].code, found[1].frame) == ("rescale_type", 2)


def test_the_number_of_frames_is_known_before_decoding() -> None:
    def num_frames(data: bytes) -> int:
        return dicom.read_slices(data, KEEP, None).num_frames

    assert num_frames(b"") == 1
    assert num_frames(ct_file(gradient())) == 1
    assert num_frames(ct_file(gradient(), NumberOfFrames=1234)) == 1  # but has pixels of only one
    assert num_frames(ct_file(gradient(), NumberOfFrames=1234).replace(b"1234", b"many")) == 1

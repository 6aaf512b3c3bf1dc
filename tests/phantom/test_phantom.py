"""Synthetic studies are reproducible, valid for pydicom, correctly positioned, and have correct labels."""

import csv
import hashlib
import io
import re
import warnings

import numpy as np
import pydicom
import pytest
from pydicom import config

from phantom import study as phantom
from phantom.bleeds import CLASSES, draw_bleeds
from phantom.dataset import encode_study, write
from phantom.errors import PhantomError
from phantom.scanner import CODINGS, PADDING, draw_geometry, noise_tile
from phantom.write import SliceAttributes, encode_slice

SEED = 7


@pytest.fixture(autouse=True)
def rsna_uids_are_not_checked(monkeypatch):
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)


@pytest.fixture(scope="module")
def studies():
    return [phantom.make_study(SEED, patient) for patient in range(10)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = write(out, patients=3, seed=SEED)
    return out, summary


def read_labels(out):
    with (out / "labels.csv").open(newline="") as file:
        return list(csv.reader(file))


def digests(out):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "dicoms").iterdir()}


def test_patients_do_not_depend_on_their_number(written, tmp_path):
    out, _ = written
    done = []
    write(tmp_path, patients=1, seed=SEED, progress=done.append)
    few, many = digests(tmp_path), digests(out)
    assert done == [1]
    assert few.items() < many.items()
    assert read_labels(out)[: len(read_labels(tmp_path))] == read_labels(tmp_path)


def test_workers_write_the_same_files(written, tmp_path):
    out, summary = written
    done = []
    assert write(tmp_path, patients=3, seed=SEED, progress=done.append, workers=2) == summary
    assert done == [1, 2, 3]
    assert digests(tmp_path) == digests(out)
    assert read_labels(tmp_path) == read_labels(out)


def test_another_seed_gives_another_patient(studies):
    other = phantom.make_study(SEED + 1, 0)
    assert other.patient_id != studies[0].patient_id
    count = min(len(other.stored), len(studies[0].stored))
    assert not np.array_equal(other.hu[:count], studies[0].hu[:count])


def test_files_are_named_by_uid_and_labels_have_six_lines_per_slice(written):
    out, summary = written
    names = sorted(path.name for path in (out / "dicoms").iterdir())
    header, *rows = read_labels(out)
    assert header == ["ID", "Label"]
    assert len(names) == summary.slices
    assert len(rows) == 6 * summary.slices
    assert all(re.fullmatch(r"ID_[0-9a-f]{9}\.dcm", name) for name in names)
    for k in range(0, len(rows), 6):
        images, classes = zip(*(row[0].rsplit("_", 1) for row in rows[k : k + 6]), strict=True)
        assert len(set(images)) == 1
        assert f"{images[0]}.dcm" in names
        assert classes == ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
        values = [int(row[1]) for row in rows[k : k + 6]]
        assert values[5] == max(values[:5])
    positive = {name: sum(int(label) for uid, label in rows if uid.endswith(f"_{name}")) for name in (*CLASSES, "any")}
    assert positive == summary.positive


def test_pydicom_reads_the_files(studies):
    for study in studies[:3]:
        for k, (name, data) in enumerate(encode_study(study)):
            dataset = pydicom.dcmread(io.BytesIO(data))
            assert name == f"{dataset.SOPInstanceUID}.dcm" == f"{study.uids[k]}.dcm"
            assert dataset.PatientID == study.patient_id
            assert np.array_equal(dataset.pixel_array, study.stored[k])
            hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            assert np.array_equal(hu, study.hu[k])
            assert np.allclose(dataset.ImagePositionPatient, study.geometry.positions[k], atol=1e-6)
            absent = (
                "InstanceNumber",
                "SliceLocation",
                "SliceThickness",
                "ImageType",
                "RescaleType",
                "PixelPaddingValue",
            )
            assert not any(keyword in dataset for keyword in absent)


def test_files_of_a_study_differ_only_in_uid_position_and_pixels(studies):
    for study in studies[:2]:
        first, *others = (pydicom.dcmread(io.BytesIO(data)) for _, data in encode_study(study))
        for other in others:
            assert other.file_meta.MediaStorageSOPInstanceUID == other.SOPInstanceUID
            assert [element.tag for element in other] == [element.tag for element in first]
            differing = {element.keyword for element in first if other[element.tag].value != element.value}
            assert differing == {"SOPInstanceUID", "ImagePositionPatient", "PixelData"}


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("implicit_vr", [False, True])
def test_codings_keep_extreme_values(coding, implicit_vr):
    low, high = coding.limits
    stored = np.array([[low, 0, 1], [high, high - 1, 7]], np.int16 if coding.signed else np.uint16)
    attributes = SliceAttributes(
        sop_instance_uid="ID_000000001",
        patient_id="ID_00000002",
        study_instance_uid="ID_0000000003",
        series_instance_uid="ID_0000000004",
        position=(-125.0, -123.540457, 5.836059),
        orientation=(1.0, 0.0, 0.0, 0.0, 0.948324, -0.317305),
        spacing_mm=(0.5, 0.25),
        bits_stored=coding.bits_stored,
        intercept=coding.intercept,
        windows=(("00036", "00080"), ("00036", "00080")),
        implicit_vr=implicit_vr,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = encode_slice(stored, attributes)
    dataset = pydicom.dcmread(io.BytesIO(data))
    assert np.array_equal(dataset.pixel_array, stored)
    assert dataset.file_meta.TransferSyntaxUID.is_implicit_VR == implicit_vr
    assert (dataset.HighBit, dataset.PixelRepresentation) == (coding.bits_stored - 1, int(coding.signed))
    assert list(dataset.PixelSpacing) == [0.5, 0.25]
    assert [str(value) for value in dataset.WindowCenter] == ["00036", "00036"]


def test_positions_ascend_along_table_and_normal(studies):
    tilted = 0
    for study in studies:
        geometry = study.geometry
        right, down = np.reshape(geometry.orientation, (2, 3))
        normal = np.cross(right, down)
        assert np.isclose(normal @ normal, 1)
        assert normal[2] > 0.9
        along = geometry.positions @ normal
        steps = np.diff(along)
        assert 20 <= len(along) <= 60
        assert steps.min() > 0.9
        assert steps.max() < 8
        assert np.ptp(geometry.positions[:, :2], axis=0).max() < 1e-9
        assert 120 < np.ptp(along) < 170
        tilted += normal[2] < 0.9999
    assert tilted >= 7


def test_nine_in_ten_studies_are_tilted_and_four_in_ten_uneven():
    made = [draw_geometry(np.random.default_rng(k), np.zeros(3), 1.0) for k in range(600)]
    tilted = np.mean([geometry.orientation[5] != 0 for geometry in made])
    uneven = np.mean([np.ptp(np.diff(geometry.positions[:, 2])) > 0.1 for geometry in made])
    assert tilted == pytest.approx(0.92, abs=0.04)
    assert uneven == pytest.approx(0.44, abs=0.07)


def test_hu_are_plausible_for_a_head(studies):
    for study in studies:
        hu = study.hu
        inside = hu[(hu > -1500)]
        assert hu.min() in (study.coding.intercept + PADDING, inside.min())
        assert -1024 <= inside.min() < -950
        high = hu[int(0.75 * len(hu))]
        assert 900 < np.percentile(high[high > 300], 90) < 2600
        assert 20 < np.median(high[200:320, 180:330]) < 45
    assert {study.stored.dtype.kind for study in studies} == {"i", "u"}


def test_noise_is_correlated_like_that_of_a_scanner():
    tile = noise_tile(np.random.default_rng(0))
    near = [np.mean(tile[:, k:] * tile[:, :-k]) for k in (1, 2, 3)]
    assert near == pytest.approx([0.65, 0.13, -0.02], abs=0.12)


def test_labels_agree_with_the_area_of_blood(studies):
    seen = np.zeros(5, int)
    for study in studies:
        mm2 = (2 * study.geometry.spacing_mm) ** 2
        for k, owner in enumerate(study.blood):
            area = np.array([(owner == 1 + kind).sum() * mm2 for kind in range(5)])
            assert np.array_equal(study.labels[k, :5], area >= phantom.VISIBLE_MM2)
            assert study.labels[k, 5] == study.labels[k, :5].max()
        seen += study.labels[:, :5].any(0)
    assert (seen > 0).all()  # among ten consecutive patients, each kind is the first kind of one


def test_blood_has_plausible_hu_and_unlabelled_slices_have_little(studies):
    for study in studies:
        hu = study.hu[:, ::2, ::2]
        for kind in range(5):
            for k in np.flatnonzero(study.labels[:, kind]):
                blood = hu[k][study.blood[k] == 1 + kind]
                assert 40 < np.median(blood) < 95
        quiet = study.labels[:, 5] == 0
        assert (study.blood[quiet] > 0).sum((1, 2)).max(initial=0) * (2 * study.geometry.spacing_mm) ** 2 < 5 * 30


def test_bleeds_are_brighter_than_the_same_head_without_them(studies, monkeypatch):
    patient = next(p for p, study in enumerate(studies) if study.labels[:, 4].any())
    bleeding = studies[patient]

    def draw_none(rng, kinds, head):
        draw_bleeds(rng, kinds, head)  # the same random numbers, so that the rest of the study is identical
        return ()

    monkeypatch.setattr(phantom, "draw_bleeds", draw_none)
    healthy = phantom.make_study(SEED, patient)
    assert not healthy.labels.any()
    assert healthy.uids == bleeding.uids
    clot = bleeding.blood > 0
    gain = bleeding.hu[:, ::2, ::2][clot] - healthy.hu[:, ::2, ::2][clot]
    assert np.median(gain) > 15
    dry = ~bleeding.labels[:, 5].astype(bool)
    assert np.abs(bleeding.hu[dry] - healthy.hu[dry]).mean() < 1.0


def test_half_the_patients_bleed(studies):
    first = [phantom.draw_kinds(3, patient, np.random.default_rng(patient)) for patient in range(200)]
    assert sum(bool(kinds) for kinds in first) == 100
    assert {kind for kinds in first for kind in kinds} == set(CLASSES)


@pytest.mark.parametrize("bleeding", [0, 3, 8, 10])
def test_the_requested_share_of_patients_bleeds(bleeding):
    kinds = [phantom.draw_kinds(3, patient, np.random.default_rng(patient), bleeding) for patient in range(100)]
    assert sum(bool(found) for found in kinds) == 10 * bleeding
    if bleeding >= 5:
        assert {kind for found in kinds for kind in found} == set(CLASSES)


def test_identifiers_are_unique():
    for bits in (32, 36, 40):
        made = {phantom.scramble(number, bits, SEED) for number in range(20_000)}
        assert len(made) == 20_000
        assert max(made) < 2**bits
    small = {phantom.scramble(number, 12, SEED) for number in range(4096)}
    assert small == set(range(4096))


def test_some_patients_have_two_studies():
    counts = [phantom.count_studies(SEED, patient) for patient in range(2000)]
    assert set(counts) == {1, 2}
    assert 0.01 < np.mean(np.array(counts) == 2) < 0.05
    first, second = (phantom.make_study(SEED, counts.index(2), number) for number in range(2))
    assert first.patient_id == second.patient_id
    assert first.study_instance_uid != second.study_instance_uid
    assert not set(first.uids) & set(second.uids)


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "dicoms").mkdir()
    (tmp_path / "dicoms" / "old.dcm").touch()
    with pytest.raises(PhantomError, match=r"not empty, .* choose another --out"):
        write(tmp_path, patients=1, seed=0)
    assert write(tmp_path / "other", patients=0, seed=0).slices == 0

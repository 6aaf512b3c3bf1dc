"""Patient data never leave a file, except for elements on the allow-list, of which PatientID is hashed."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.dicom.records import Reject, Slice
from pipeline.planning.catalog import Reading
from testkit.dicom_files import ct_dataset, ct_file, encode, gradient, read, read_one
from testkit.small import run, write

# --- one file --------------------------------------------------------------------------------------------------------


def test_patients_are_hashed_with_the_key() -> None:
    hashing = Reading()
    (one,), (same,), (other,) = (
        read(ct_file(gradient(), PatientID=patient), hashing, b"k" * 32) for patient in ("A7", " A7 ", "A8")
    )
    assert one.record.patient_id == same.record.patient_id != other.record.patient_id
    assert one.record.patient_id == hashlib.blake2b(b"A7", key=b"k" * 32, digest_size=16).hexdigest()
    (rekeyed,) = read(ct_file(gradient(), PatientID="A7"), hashing, b"j" * 32)
    assert rekeyed.record.patient_id != one.record.patient_id


def test_the_study_replaces_an_empty_patient_id() -> None:
    for changes in ({"PatientID": None}, {"PatientID": " "}):
        record = read_one(ct_file(gradient(), **changes)).record
        assert (record.patient_id, record.patient_from_study) == ("study:1.2.3", True)
        (hashed,) = read(ct_file(gradient(), **changes), Reading(), b"k" * 32)
        assert hashed.record.patient_id == hashlib.blake2b(b"study:1.2.3", key=b"k" * 32, digest_size=16).hexdigest()
    assert not read_one(ct_file(gradient())).record.patient_from_study


# Marks that are valid for their VR, so that no writer or reader drops them.
MARKS = {
    "DA": "19770523",
    "TM": "061723",
    "DT": "19770523061723",
    "AS": "077Y",
    "UI": "1.9.77.5.23",
    "UR": "http://qzmark",
}
TEXT_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
MARK = "QZMARK"
# Elements that determine whether a file is a slice; they must keep their values.
NEEDED = {
    "Modality", "PhotometricInterpretation", "SpecificCharacterSet", "RescaleType", "ImageType", "FrameType",
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
}  # fmt: skip


def plant_marks(dataset: Dataset) -> int:
    """Write a mark to all text, date and identifier elements, nested and private ones too; return their number."""
    inner, planted = Dataset(), 0
    for target in (dataset, inner):
        for tag, (vr, _, _, _, keyword) in pydicom.datadict.DicomDictionary.items():
            mark = MARK if vr in TEXT_VRS else MARKS.get(vr)
            if mark and 0x0008 <= tag >> 16 <= 0x4010 and keyword not in NEEDED:
                target.add(pydicom.DataElement(tag, vr, mark, validation_mode=pydicom.config.IGNORE))
                planted += 1
        target.add_new(0x00090010, "LO", MARK)
        target.add_new(0x00091001, "LO", MARK)
        target.add_new(0x00091002, "UN", MARK.encode())
    dataset.RequestAttributesSequence = Sequence([inner])
    return planted


def assert_no_mark(content: bytes) -> None:
    for mark in (MARK, *MARKS.values()):
        assert mark.lower().encode() not in content.lower(), mark


@pytest.mark.parametrize("broken", [False, True])
def test_no_text_of_a_file_leaves_the_reader(
    broken: bool, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ct_dataset(gradient())
    assert plant_marks(dataset) > 2000
    data = encode(dataset)
    if broken:
        data = data[:-10]
    caplog.clear()  # messages of writing the file
    caplog.set_level(logging.DEBUG)
    (found,) = read(data, Reading(), b"k" * 32)
    assert isinstance(found, Reject if broken else Slice)
    out, err = capfd.readouterr()
    assert_no_mark(f"{found.message if broken else found.record}{out}{err}{caplog.text}".encode())


# --- a build -------------------------------------------------------------------------------------------------------


@pytest.fixture
def src(test_data: Path, tmp_path: Path) -> Path:
    """Return a source of four slices of a real series with marks; the last is rejected with a message."""
    folder = tmp_path / "dicoms"
    for number, file in enumerate(sorted((test_data / "head_ct_tilted").glob("*.dcm"))[:4]):
        dataset = pydicom.dcmread(file)
        plant_marks(dataset)
        if number == 3:
            dataset.RescaleType = MARK
        write(folder / f"{number}.dcm", encode(dataset))
        assert (folder / f"{number}.dcm").read_bytes().count(MARK.encode()) > 1000
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_no_patient_data_are_in_a_cache_or_in_output(src: Path, tmp_path: Path, workers: int, capfd: Any) -> None:
    out, page = tmp_path / "cache.zarr", tmp_path / "report.html"
    options = ("--src", src, "--out", out, "--size", 16)
    said = [run("build", *options, "--workers", workers, code=1)]
    assert pd.read_csv(out / "rejects.csv")["code"].to_list() == ["rescale_type"]
    said += [run("report", out, "--out", page), run("info", out), run("info", "--json", out), run("plan", *options)]
    said += [run("why", out, src / name) for name in ("0.dcm", "3.dcm")]
    (src / "0.dcm").rename(tmp_path / "gone.dcm")
    said.append(run("build", *options, "--workers", workers, code=1))
    for result in said:
        assert_no_mark(result.output.encode())
    assert_no_mark("".join(capfd.readouterr()).encode())
    for file in (page, *out.rglob("*")):
        assert file.is_dir() or not assert_no_mark(file.read_bytes())


def test_another_patient_key_is_refused(tmp_path: Path) -> None:
    keys = []
    for number in range(2):
        keys.append(tmp_path / f"{number}.key")
        keys[-1].write_text(f"{number}f" * 32)
        keys[-1].chmod(0o600)
    src, out = tmp_path / "dicoms", tmp_path / "cache.zarr"
    write(src / "a.dcm", ct_file(gradient(), PatientID="PATIENT7"))
    options = ("--src", src, "--out", out, "--size", 8, "--workers", 0)
    run("build", *options, "--patient-key", keys[0])
    assert "built with another patient key" in run("build", *options, "--patient-key", keys[1], code=1).stderr
    for file in out.rglob("*"):
        assert file.is_dir() or b"PATIENT7" not in file.read_bytes()

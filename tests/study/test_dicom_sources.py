"""Test DICOM answers to unusual studies: invalid UIDs, and several frames in one file."""

import hashlib
import io
import json
import shutil
import subprocess
import uuid
from pathlib import Path

import highdicom as hd
import numpy as np
import pandas as pd
import pydicom
import pytest

from testkit.dicom_files import enhanced_file, frame_groups
from testkit.study import write_phantom
from tests.study.conftest import predict
from training.study.dicom_out import valid_uid

DCIODVFY = shutil.which("dciodvfy")


def errors_of(path: Path) -> list[str]:
    if DCIODVFY is None:
        pytest.skip("there is no dciodvfy; on Debian: apt-get install dicom3tools")
    said = subprocess.run([str(DCIODVFY), str(path)], capture_output=True, text=True, check=False).stderr
    return [line for line in said.splitlines() if line.startswith("Error")]


def by_the_rule(text: str) -> str:
    """Return the UID of a text, computed byte by byte as in RFC 9562: SHA-1 with version and variant set."""
    digest = bytearray(hashlib.sha1(uuid.NAMESPACE_OID.bytes + text.encode()).digest()[:16])
    digest[6], digest[8] = digest[6] & 0x0F | 0x50, digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"


def test_valid_uids_are_kept_and_invalid_ones_replaced_by_the_rule():
    assert valid_uid("1.2.840.10008.1.1") == "1.2.840.10008.1.1"
    for invalid in ("ID_0a1b2c3d4", "", "1.2.03", "1." * 40 + "1"):
        assert valid_uid(invalid) == by_the_rule(invalid)
        assert pydicom.uid.UID(valid_uid(invalid)).is_valid


def test_a_study_of_rsna_2019_has_dicom_answers(run, tmp_path):
    files = write_phantom(tmp_path / "dicom", keep=3, valid=False)
    said = predict(run.path, (tmp_path / "dicom",), tmp_path / "out", "--sr", "--heatmap")
    assert said.exit_code == 0, said.output + said.stderr
    [report], [heat] = list((tmp_path / "out" / "sr").iterdir()), list((tmp_path / "out" / "heatmap").iterdir())
    assert errors_of(report) == []
    assert errors_of(heat) == []
    noted = pd.read_csv(tmp_path / "out" / "uids.csv")
    source = pydicom.dcmread(files[0], stop_before_pixels=True)
    given = dict(zip(noted["original"], noted["given"], strict=True))
    assert set(given) >= {file.stem for file in files} | {source.StudyInstanceUID, source.SeriesInstanceUID}
    assert all(value == by_the_rule(original) for original, value in given.items())
    for path in (report, heat):
        assert pydicom.dcmread(path).StudyInstanceUID == given[source.StudyInstanceUID]
    evidence = pydicom.dcmread(report).CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.SeriesInstanceUID == given[source.SeriesInstanceUID]
    referenced = {item.ReferencedSOPInstanceUID for item in evidence.ReferencedSOPSequence}
    assert referenced == {given[file.stem] for file in files}


@pytest.fixture
def enhanced(tmp_path: Path) -> tuple[Path, list[float]]:
    """A file of three frames from head to foot, with the attributes that a parametric map requires."""
    places = [20.0, 10.0, 0.0]
    shape = np.hypot(*np.mgrid[-32:32, -32:32]) < 28
    stored = np.stack([np.where(shape, 1064 + 8 * k, 24).astype(np.int16) for k in range(3)])
    groups = [frame_groups(z, 1.0, -1024.0) for z in places]
    for group in groups:
        content = pydicom.Dataset()
        content.StackID, content.InStackPositionNumber = "1", 1
        group.FrameContentSequence = [content]
    uids = {"SOPInstanceUID": "1.2.3.50", "FrameOfReferenceUID": "1.2.3.60"}
    dataset = pydicom.dcmread(io.BytesIO(enhanced_file(stored, groups, **uids)))
    measures, [shared] = pydicom.Dataset(), dataset.SharedFunctionalGroupsSequence
    measures.PixelSpacing, measures.SliceThickness = [3.0, 3.0], 10.0
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], groups[0].PlaneOrientationSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PlaneOrientationSequence
    (tmp_path / "dicom").mkdir()
    dataset.save_as(tmp_path / "dicom" / "a.dcm")
    return tmp_path / "dicom", places


def test_frames_of_one_file_are_slices_and_referenced_by_number(run, enhanced, tmp_path):
    folder, places = enhanced
    said = predict(run.path, (folder,), tmp_path / "out", "--sr", "--heatmap")
    assert said.exit_code == 0, said.output + said.stderr
    slices = pd.read_csv(tmp_path / "out" / "slices.csv")
    assert slices["frame"].tolist() == [3, 2, 1]  # foot to head
    assert slices["z_mm"].tolist() == sorted(places)
    document = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert [line["frame"] for line in document["slices"]] == [3, 2, 1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "slice 1, frame 3 of its file: enlarge" in page
    report = hd.sr.srread(tmp_path / "out" / "sr" / "study-1.dcm")
    groups = {of.tracking_identifier: of for of in report.content.get_image_measurement_groups()}
    for number, frame in ((1, 3), (2, 2), (3, 1)):
        [image] = groups[f"slices 1.1.{number} any"].source_images
        assert image.referenced_sop_instance_uid == "1.2.3.50"
        assert image.referenced_frame_numbers in (frame, [frame])
    heat = pydicom.dcmread(tmp_path / "out" / "heatmap" / "study-1-series-1.dcm")
    sources = [
        group.DerivationImageSequence[0].SourceImageSequence[0] for group in heat.PerFrameFunctionalGroupsSequence
    ]
    assert [int(of.ReferencedFrameNumber) for of in sources] == [1, 2, 3]
    for path in (tmp_path / "out" / "sr" / "study-1.dcm", tmp_path / "out" / "heatmap" / "study-1-series-1.dcm"):
        assert errors_of(path) == []

"""Test DICOM answers: valid by dciodvfy, readable by pydicom and highdicom, with the patient data of the source."""

import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pandas as pd
import pydicom
import pytest

from tests.study.conftest import Answered
from training.study.dicom_heat import stretch
from training.study.dicom_sr import SCHEME, finding_of, tracking_name

DCIODVFY = shutil.which("dciodvfy")
CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
KINDS = {"PROBABILITY": "probability", "CALIBRATED": "calibrated", "THRESHOLD": "threshold"}


def reports(answered: Answered) -> list[Path]:
    found = sorted((answered.out / "sr").iterdir())
    assert [path.name for path in found] == [f"study-{number}.dcm" for number in (1, 2, 3, 4, 5)]
    return found


@pytest.mark.skipif(DCIODVFY is None, reason="there is no dciodvfy; on Debian: apt-get install dicom3tools")
def test_dciodvfy_finds_no_error(answered):
    maps = sorted((answered.out / "heatmap").iterdir())
    assert maps
    for path in (*reports(answered), *maps):
        done = subprocess.run([str(DCIODVFY), str(path)], capture_output=True, text=True, check=False)
        assert "Comprehensive3DSR" in done.stderr or "ParametricMap" in done.stderr
        assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


def test_every_probability_reads_back_equal(answered):
    tables = {name: pd.read_csv(answered.out / f"{name}.csv") for name in ("studies", "series", "slices")}
    seen = 0
    for path in reports(answered):
        report = hd.sr.srread(path)
        assert isinstance(report, hd.sr.Comprehensive3DSR)
        groups = {of.tracking_identifier: of for of in report.content.get_image_measurement_groups()}
        study = int(path.stem.split("-")[1])
        for level, table in tables.items():
            for record in table[table["study"] == study].to_dict("records"):
                for name in CLASSES:
                    if np.isfinite(record[f"{name}_probability"]):
                        check(groups[tracking_name(level, record, name)], record, name)
                        seen += 1
    assert seen == 6 * (len(tables["slices"]) + len(tables["series"]) + 4)  # not the chest's study


def check(group, record, name):
    values = {of.name.value: of.value for of in group.get_measurements()}
    assert values == {code: record[f"{name}_{kind}"] for code, kind in KINDS.items()}
    decided = [of.value.value for of in group.get_qualitative_evaluations()]
    decision = record[f"{name}_decision"]
    assert decided == ([] if decision != decision else ["10828004" if decision else "260385009"])
    if "slice" in record:
        [image] = group.source_images
        assert image.referenced_sop_instance_uid == record["sop_instance_uid"]


def test_patient_data_are_those_of_the_source_without_comments(answered):
    report = pydicom.dcmread(reports(answered)[0])
    sources = {}
    for folder in answered.given:
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.is_file():
                dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                sources[dataset.get("StudyInstanceUID")] = dataset
    for path in reports(answered):
        report = pydicom.dcmread(path)
        source = sources.get(report.StudyInstanceUID)
        if source is not None:
            assert report.PatientID == source.get("PatientID", "")
            assert report.PatientName == source.get("PatientName", "")
        assert "SECRET COMMENT" not in str(report)


def test_heat_maps_refer_to_their_slices(answered):
    maps = [pydicom.dcmread(path) for path in sorted((answered.out / "heatmap").iterdir())]
    real = next(of for of in maps if of.NumberOfFrames == 28)
    slices = pd.read_csv(answered.out / "slices.csv")
    uids = {
        str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        for frame in real.PerFrameFunctionalGroupsSequence
    }
    assert uids == set(slices[slices["study_instance_uid"] == real.StudyInstanceUID]["sop_instance_uid"])
    pixels = np.frombuffer(real.FloatPixelData, "<f4").reshape(28, 512, 512)
    assert -1 <= pixels.min() <= pixels.max() <= 1
    assert np.abs(pixels).max() > 0.9


def test_stretching_restores_the_size_of_frames_that_are_not_square():
    heat = np.zeros((32, 32), np.float32)
    heat[8, 24] = 1
    large = stretch(heat, 256, 512)
    assert large.shape == (256, 512)
    y, x = np.unravel_index(large.argmax(), large.shape)
    assert abs(y - 8.5 * 8) <= 5
    assert abs(x - 24.5 * 16) <= 9


def test_rsna_classes_have_public_codes_and_others_private_ones(answered):
    report = hd.sr.srread(reports(answered)[0])
    groups = {of.tracking_identifier: of for of in report.content.get_image_measurement_groups()}
    found = {name: groups[f"studies 1 {name}"] for name in CLASSES}
    codes_of = {name: (of.finding_type.scheme_designator, of.finding_type.value) for name, of in found.items()}
    assert codes_of["any"] == ("SCT", "1386000")
    assert codes_of["subarachnoid"] == ("SCT", "21454007")
    assert codes_of["intraparenchymal"] == ("SCT", "274100004")
    assert codes_of["subdural"] == (SCHEME, "CLASS_SUBDURAL")
    sites = {name: [site.value.value for site in of.finding_sites] for name, of in found.items()}
    assert sites["intraventricular"] == ["35764002"]
    assert sites["any"] == []
    finding, places = finding_of("any", ("fracture", "any"))
    assert (finding.scheme_designator, finding.meaning, places) == (SCHEME, "any", None)

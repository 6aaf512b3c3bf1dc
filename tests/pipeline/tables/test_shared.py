"""UIDs shared by several patients or studies are reported, and their slices are not confused."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from testkit.dicom_files import ct_file, gradient
from testkit.small import Small, write


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path, labels={f"1.2.{number}": number % 2 for number in range(12)})


def put(small: Small, name: str, number: int, **changes: object) -> None:
    uids = {"SOPInstanceUID": f"1.2.{number}", "ImagePositionPatient": [0, 0, 5.0 * number]}
    write(small.src / f"{name}.dcm", ct_file(gradient(), **(uids | changes)))


@pytest.mark.parametrize(
    "whose", [{"PatientID": "other"}, {"StudyInstanceUID": "1.9.1"}, {"SeriesInstanceUID": "1.9.2"}]
)
def test_a_slice_of_two_patients_studies_or_series_is_rejected(small: Small, whose: dict[str, str]) -> None:
    for number in range(3):
        put(small, f"a{number}", number)
    put(small, "b0", 0, **whose)
    put(small, "c1", 1)  # an identical copy
    small.build("--max-rejects", 2)
    rejects = pd.read_csv(small.out / "rejects.csv")
    assert dict(zip(rejects["path"], rejects["code"], strict=True)) == {
        "a0.dcm": "duplicate_conflict",
        "b0.dcm": "duplicate_conflict",
        "c1.dcm": "duplicate",
    }
    assert "patient, study or series" in rejects["message"][0]
    assert len(pd.read_csv(small.out / "metadata.csv")) == 2


def test_a_build_reports_series_uids_shared_by_several_studies(small: Small) -> None:
    put(small, "a0", 0)
    put(small, "a1", 1)
    first = small.build()
    assert "in several studies" not in first.output + first.stderr
    put(small, "b0", 10, StudyInstanceUID="1.9.1")
    put(small, "b1", 11, StudyInstanceUID="1.9.1")
    said = small.build()
    assert "1 Series Instance UID in several studies; each study's is a separate series" in said.output + said.stderr
    assert sorted(pd.read_csv(small.out / "metadata.csv")["z_norm"]) == [0, 0, 1, 1]


def test_real_studies_with_the_same_series_uid_are_placed_separately(test_data: Path, tmp_path: Path) -> None:
    reported = Small(tmp_path)
    for study in ("series_uid_a", "series_uid_b"):
        shutil.copytree(test_data / "reported" / study, reported.src / study)
    reported.build()
    table = pd.read_csv(reported.out / "metadata.csv")
    assert table["series_instance_uid"].nunique() == 1
    for _, series in table.groupby("study_instance_uid"):
        assert sorted(series["z_norm"]) == [0, 0.25, 0.5, 0.75, 1]

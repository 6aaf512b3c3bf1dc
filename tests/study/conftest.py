"""One answer to several studies, shared by the tests."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from testkit.study import change, chest, trained_run, write_phantom
from training.cli.main import main
from training.run.runs import Run


@dataclass(frozen=True)
class Answered:
    """An answer and its inputs: a real study, unusual real series, a zipped phantom, and a chest."""

    run: Run
    given: tuple[Path, ...]
    out: Path
    said: Result


def predict(run: Path, given: tuple[Path, ...], out: Path, *options: str) -> Result:
    """Run `train predict --dicom` in this process."""
    command = ["predict", "--run", str(run), "--out", str(out), "--device", "cpu", *options]
    return CliRunner().invoke(main, [*command, *(part for path in given for part in ("--dicom", str(path)))])


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with thresholds, at 32 px."""
    return trained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def answered(run: Run, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    folder = tmp_path_factory.mktemp("study")
    files = write_phantom(folder / "phantom")
    change(files[1], PatientComments="SECRET COMMENT")
    files[2].write_bytes(files[2].read_bytes()[:5000])  # a damaged file
    with zipfile.ZipFile(folder / "phantom.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"SECRET/{file.name}")
    chest(folder / "chest")
    given = (test_data / "head_ct_tilted", test_data / "mixed_series", folder / "phantom.zip", folder / "chest")
    said = predict(run.path, given, folder / "answer", "--sr", "--heatmap")
    return Answered(run, given, folder / "answer", said)

"""Test invalid input: one line with reason and remedy, exit code 1, and no partial output."""

import shutil
import zipfile
from pathlib import Path

import pytest

from testkit.study import write_phantom
from tests.study.conftest import predict
from training.errors import StudyError
from training.study import building
from training.study.sources import Limits, gather


def refused(said, out: Path) -> str:
    assert said.exit_code == 1, said.output
    assert not out.exists()
    assert not list(out.parent.glob(".*partial"))
    [line] = said.stderr.strip().splitlines()
    return line


def test_an_mr_study_has_no_slice(run, test_data, tmp_path):
    (tmp_path / "mr").mkdir()
    shutil.copy(test_data / "odd" / "emri_small.dcm", tmp_path / "mr")
    said = predict(run.path, (tmp_path / "mr",), tmp_path / "out")
    assert "none of its files is a CT slice (1 files, 1 not a slice)" in refused(said, tmp_path / "out")


def test_a_missing_folder_is_refused(run, tmp_path):
    said = predict(run.path, (tmp_path / "none",), tmp_path / "out")
    assert "none: does not exist; give a folder" in refused(said, tmp_path / "out")


def test_a_folder_with_content_is_never_written_to(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    said = predict(run.path, (tmp_path,), tmp_path / "out")
    assert said.exit_code == 1
    assert "choose another --out" in said.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_missing_pipeline_is_reported_with_the_package_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_is_installed", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    write_phantom(tmp_path / "dicom", keep=1)
    line = refused(predict(run.path, (tmp_path / "dicom",), tmp_path / "out"), tmp_path / "out")
    assert "pip install 'ich-cache[pipeline,codecs]'" in line


def test_a_pipeline_without_its_libraries_is_reported(tmp_path):
    said = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'numba'\n"
    assert building.INSTALL in building._message(said, 1, tmp_path)


def test_a_run_without_weights_is_refused(run, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    shutil.copy(run.path / "settings.json", other)
    write_phantom(tmp_path / "dicom", keep=1)
    line = refused(predict(other, (tmp_path / "dicom",), tmp_path / "out"), tmp_path / "out")
    assert "weights" in line


def encrypted(content: bytes) -> bytes:
    """Set the encryption flag of a member in its local header and in the directory (APPNOTE 4.3.7, 4.3.12)."""
    flagged = bytearray(content)
    flagged[6] |= 1
    flagged[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(flagged)


DAMAGE = {
    "the archive is damaged": lambda content: content[:3000],
    "the archive is damaged, whole": lambda content: b"PK\x03\x04" + bytes(400),
    "it is encrypted": encrypted,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_an_archive_that_cannot_be_unpacked_is_refused(what, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a", bytes(5000))
    archive.write_bytes(DAMAGE[what](archive.read_bytes()))
    (tmp_path / "work").mkdir()
    with pytest.raises(StudyError, match=rf"a\.zip: cannot be unpacked \({what.split(',')[0]}\); unpack it yourself"):
        gather([archive, archive], tmp_path / "work", Limits())
    assert not list((tmp_path / "work").iterdir())


def test_limits_of_archives_apply_before_they_are_unpacked(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for number in range(3):
            opened.writestr(f"../../{number}", bytes(100_000))
    for at, limits in enumerate((Limits(files=2), Limits(bytes=299_999), Limits(files=3, bytes=300_000))):
        (tmp_path / str(at)).mkdir()
        if at < 2:
            with pytest.raises(StudyError, match="give one study at a time"):
                gather([archive], tmp_path / str(at), limits)
        else:
            folder = gather([archive], tmp_path / str(at), limits)
            assert len([path for path in folder.rglob("*") if path.is_file()]) == 3  # none outside of it

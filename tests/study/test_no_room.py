"""Test a full disk for temporary files or the answer: one line with a remedy, and no files left."""

import errno
import os
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.study.conftest import predict
from training.errors import NotWrittenError, StudyError
from training.study import building, command, scratch, writing
from training.study.backend import Backend, Options
from training.study.model import open_model
from training.study.pipeline_process import PipelineProcess
from training.study.service import make_app

ADVICE = "free up space there, or set TMPDIR to a folder with enough space"


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def begun(*_: Any) -> Any:
    raise StudyError("begun")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    scratch.remove_left_behind.cache_clear()
    return tmp_path / "temporary"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as opened:
        opened.writestr("a", bytes(5000))
    return tmp_path / "study.zip"


PLACES = {
    "the folder": (tempfile, "TemporaryDirectory", full),
    "a member of an archive": (zipfile.ZipFile, "extract", full),
    "the catalog": (building, "write_catalog", full),
    "the cache": (command, "finish_build", lambda order: building.check_outcome(order, 1, NEEDS.format(order.cache))),
}
NEEDS = "error: {}: 3 slices need about 5 MB, 1 MB are free; make room, or give another --out"


@pytest.mark.parametrize("place", PLACES)
def test_no_space_for_temporary_files_is_reported_with_their_folder(place, run, archive, temporary, monkeypatch):
    order = SimpleNamespace(cache=temporary / "ich-study-x" / "cache.zarr", source=archive)
    for name, stand_in in (("begin_build", lambda _: order), ("end", lambda _: None)):
        monkeypatch.setattr(command, name, stand_in)
    out = temporary.parent / "out"
    with monkeypatch.context() as context:
        context.setattr(*PLACES[place])
        said = predict(run.path, (archive,), out)
    [line] = said.stderr.strip().splitlines()
    assert said.exit_code == 1
    assert line.startswith(f"error: {temporary}: no space for the temporary files of a study (")
    assert line.endswith(ADVICE)
    assert not list(temporary.iterdir())
    assert {path.name for path in temporary.parent.iterdir()} == {"temporary", "study.zip"}


def test_another_temporary_folder_helps(run, archive, temporary, monkeypatch):
    """TMPDIR sets the folder of all temporary files, including the cache of a study."""
    (other := temporary.parent / "other").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(other))

    def begin(order: building.Order) -> Any:
        assert other in order.cache.parents
        begun()

    monkeypatch.setattr(command, "begin_build", begin)
    assert "begun" in predict(run.path, (archive,), temporary.parent / "out").stderr


def test_no_space_for_the_answer_is_reported_and_leaves_no_files(tmp_path):
    def write() -> None:
        with writing.complete_folder(tmp_path / "deep" / "out") as folder:
            (folder / "slices.csv").touch()
            full()

    with pytest.raises(NotWrittenError, match=r"out: cannot be written \(No space left on device\).* free up space"):
        write()
    assert not list((tmp_path / "deep").iterdir())


def build_on_a_full_disk(self: PipelineProcess, order: building.Order, timeout_s: float) -> None:
    said = f"error: {order.cache}/images/8-d005a67a: the disk is full; nothing is lost: fix this"
    building.check_outcome(order, 1, said)


SERVED = {
    "an upload": ("training.study.service.receive", full),
    "a member of an archive": ("shutil.copyfileobj", full),
    "the cache": ("training.study.pipeline_process.PipelineProcess.build", build_on_a_full_disk),
}


@pytest.mark.parametrize("place", SERVED)
def test_the_service_reports_a_full_disk_and_its_log_the_folder(place, run, archive, temporary, monkeypatch, caplog):
    client = TestClient(make_app(Backend(open_model(run, "cpu"), Options())))
    with monkeypatch.context() as context:
        context.setattr(*SERVED[place])
        sent = {"content": archive.read_bytes(), "headers": {"content-type": "application/zip"}}
        answered = client.post("/studies", **sent)
    assert answered.status_code == 507
    assert answered.json() == {"error": "the service's disk is full; send the study again later"}
    assert not list(temporary.iterdir())
    [error] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert error.startswith(f"{temporary}: no space for")
    assert error.endswith(ADVICE)
    assert 'outcome="refused_507"} 1' in client.get("/metrics").text
    monkeypatch.setattr(PipelineProcess, "build", begun)
    assert client.post("/studies", **sent).json() == {"error": "begun"}

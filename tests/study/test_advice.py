"""Test messages about studies and the service that give a remedy: trigger each, and follow it."""

import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pydicom
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from testkit.extras import assert_installs
from testkit.study import trained_run
from testkit.tiny_run import HERE
from training.cli.main import main
from training.data.cache import open_cache
from training.errors import StudyError
from training.run.config import Runtime
from training.run.job import evaluate
from training.run.runs import Run
from training.run.task import Task
from training.scores.evaluation import read_operating
from training.study import building, command, dicom_heat, dicom_out, model, sources, uploads
from training.study.backend import Backend, Form, Options
from training.study.model import open_model
from training.study.service import make_app
from training.study.writing import check_out

# --- files -----------------------------------------------------------------------------------------------------------


def _zip(path: Path, members: int = 2) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(members):
            archive.writestr(str(number), bytes(100))
    return path


def _gathered(given: Path, folder: Path, files: int = 100) -> Path:
    folder.mkdir()
    return sources.gather([given], folder, sources.Limits(files=files))


def test_input_corrected_as_advised_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="does not exist; give a folder, a zip archive or a DICOM file"):
        _gathered(tmp_path / "none", tmp_path / "a")
    whole, cut = _zip(tmp_path / "whole.zip"), tmp_path / "cut.zip"
    cut.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(StudyError, match="unpack it yourself and give the folder"):
        _gathered(cut, tmp_path / "b")
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert _gathered(tmp_path / "unpacked", tmp_path / "c") == tmp_path / "unpacked"
    with pytest.raises(StudyError, match="give one study at a time"):
        _gathered(_zip(tmp_path / "many.zip", 9), tmp_path / "d", files=5)
    _gathered(whole, tmp_path / "e", files=5)
    denied = patch("builtins.open", side_effect=PermissionError(13, "Permission denied"))
    with pytest.raises(StudyError, match=r"cannot be read .*; give a readable file"), denied:
        sources.is_zip(whole)
    assert sources.is_zip(whole)


def test_a_free_folder_is_accepted_for_the_answer(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(StudyError, match="choose another --out, or remove it"):
        check_out(tmp_path / "out")
    check_out(tmp_path / "other")
    (tmp_path / "out" / "mine").unlink()
    check_out(tmp_path / "out")


# --- packages --------------------------------------------------------------------------------------------------------


def test_extras_in_messages_contain_the_missing_packages(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    assert building.INSTALL == "pip install 'ich-cache[pipeline,codecs]'"
    assert_installs("pipeline", "pydicom")
    assert_installs("codecs", "imagecodecs")
    assert building.INSTALL in building._message("ModuleNotFoundError: No module named 'numba'\n", 1, tmp_path)
    away = patch.multiple(building, _is_installed=lambda: False), patch("shutil.which", lambda _: None)
    with pytest.raises(StudyError, match="which reads the DICOM files, is not installed; run: "), away[0], away[1]:
        building.find_pipeline()
    assert building.find_pipeline()
    lacking = patch.object(command, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"not installed; run: pip install 'ich-cache\[dicom-out\]'"), lacking:
        command.check_dicom_out()
    assert_installs("dicom-out", "highdicom")
    command.check_dicom_out()
    monkeypatch.setitem(sys.modules, "training.study.service", None)
    said = CliRunner().invoke(main, ["serve", "--run", str(run.path)])
    assert "train serve needs it; run: pip install 'ich-cache[serve]'" in said.stderr
    for package in ("fastapi", "python-multipart", "uvicorn"):
        assert_installs("serve", package)


def test_the_suggested_command_explains_a_crashed_build(tmp_path: Path) -> None:
    advice = f"try: pipeline build --src {tmp_path}"
    assert building._message("", -9, tmp_path).endswith(advice)
    from pipeline.cli.main import main as pipeline

    said = CliRunner().invoke(pipeline, [*advice.split()[2:], "--out", str(tmp_path.with_suffix(".zarr"))])
    assert "no files in it" in said.stderr, "the command reports the reason, unlike a crash"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_suggested_command_creates_missing_thresholds(tmp_path: Path) -> None:
    run = trained_run(tmp_path, scored=False)
    for file in (*run.path.glob("thresholds*"), *run.path.glob("calibration*")):
        file.unlink()
    assert not open_model(run, "cpu").operating
    evaluate(Task(run, open_cache(run.data.cache), Runtime(device="cpu"), HERE), "validation", tta=False)
    assert open_model(run, "cpu").operating.keys() == read_operating(run.path).keys() != set()


def test_a_higher_time_limit_helps(run: Run) -> None:
    opened = open_model(run, "cpu")
    with pytest.raises(StudyError, match="give one study at a time, or allow more time"):
        model.answer(opened, Path(run.data.cache), deadline=0.0)
    with patch.object(model, "read_rejects", lambda _: pd.DataFrame()):
        assert len(model.answer(opened, Path(run.data.cache), deadline=float("inf"))[0].slices)
    order = SimpleNamespace(source="study")
    assert "give one study at a time" in str(building.too_late(order, 3.0))  # type: ignore[arg-type]


def test_the_suggested_extra_enables_heat_maps(run: Run) -> None:
    lacking = patch.object(model, "open_heat_maps", lambda _: None)
    with pytest.raises(StudyError, match=r"pip install 'ich-cache\[training\]'.*; leave --heatmap out"), lacking:
        model.heat_maps(run)
    assert_installs("training", "captum")
    model.heat_maps(run)


# --- DICOM answers ----------------------------------------------------------------------------------------------------


def _series(frames: list[int], of: int) -> tuple[Any, Any, dict[str, pydicom.Dataset]]:
    """Return an answer on some frames of a multi-frame file, its heat, and the file's header."""
    dataset = pydicom.Dataset()
    dataset.Rows = dataset.Columns = 4
    dataset.NumberOfFrames = of
    slices = pd.DataFrame({"study": 1, "series": 1, "sop_instance_uid": "1.2", "frame": frames, "z_mm": frames})
    return SimpleNamespace(slices=slices), SimpleNamespace(maps=np.zeros((len(frames), 4, 4))), {"1.2": dataset}


def test_some_frames_of_a_file_have_no_parametric_map() -> None:
    """The frames of a map correspond to all frames of its source."""
    answer, heat, headers = _series([1, 3], of=3)
    with pytest.raises(StudyError, match=r"not exactly the frames of one file, .*; leave --heatmap out"):
        dicom_heat.parametric_map(answer, (1, 1), headers, heat, {})
    answer, heat, headers = _series([1, 2, 3], of=3)
    with pytest.raises(StudyError, match=r"lacks an attribute that a parametric map requires .*; leave --heatmap out"):
        dicom_heat.parametric_map(answer, (1, 1), headers, heat, {"model": "x", "name": "x"})


def test_dicom_answers_need_one_study_and_its_files() -> None:
    two = SimpleNamespace(studies=[1, 2])
    with pytest.raises(StudyError, match="an SR covers only one; send one study at a time"):
        dicom_out.report_bytes(Path("x"), two, {})  # type: ignore[arg-type]
    answer, _, headers = _series([1], of=1)
    with pytest.raises(StudyError, match="keep the files, and run the command again"):
        dicom_out.study_sources(answer, 1, {})
    assert dicom_out.study_sources(answer, 1, headers) == [headers["1.2"]]


# --- the service ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend(run: Run) -> Iterator[Backend]:
    made = Backend(open_model(run, "cpu"), Options())
    yield made
    made.close()


@dataclass
class Sent:
    """A refused request, and the same request corrected as advised."""

    refused: Callable[[TestClient], Any]
    status: int
    advice: str
    right: Callable[[TestClient], Any]
    options: Options = field(default_factory=Options)
    better: Options | None = None


BODY = b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + bytes(200) + b"\r\n--cut--\r\n"
STOW = {"content-type": 'multipart/related; type="application/dicom"; boundary=cut'}


def _post(body: bytes = BODY, query: str = "", **headers: str) -> Callable[[TestClient], Any]:
    return lambda client: client.post(f"/studies{query}", content=body, headers=STOW | headers)


SENT = {
    "media type": Sent(lambda c: c.post("/studies", content=b"{}"), 415, "is not accepted; send ", _post()),
    "answer": Sent(_post(query="?answer=pdf"), 400, "use one of json, page, sr", _post(query="?answer=page")),
    "cut off": Sent(_post(BODY[:-10]), 400, "has no end; send it again", _post()),
    "damaged": Sent(_post(b"junk" + BODY), 400, "is damaged; send it again", _post()),
    "too large": Sent(
        _post(BODY.replace(bytes(200), bytes(2_000_000))), 413, "larger than 1 MB; send one study at a time", _post(),
        Options(megabytes=1),
    ),
    "identifiers": Sent(
        _post(query="?identifiers=1"), 403, "start it with --identifiers", _post(query="?identifiers=1"), Options(),
        Options(identifiers=True),
    ),
    "token": Sent(
        _post(), 401, "send the service's token: Authorization: Bearer TOKEN", _post(authorization="Bearer open"),
        Options(token="open"),
    ),
    "too many": Sent(_post(), 503, "send this one again later", _post(), Options(waiting=0), Options(waiting=1)),
    "late": Sent(_post(), 408, "send it faster, or allow more with --seconds", _post(), Options(seconds=0), Options()),
}  # fmt: skip


@pytest.mark.parametrize("what", SENT)
def test_a_request_corrected_as_advised_is_answered(what: str, backend: Backend) -> None:
    sent = SENT[what]

    def client(options: Options) -> TestClient:
        quick = vars(backend) | {"options": options, "serve": lambda *_, **__: (b"{}", 1)}
        return TestClient(make_app(SimpleNamespace(**quick)))  # type: ignore[arg-type]

    refused = sent.refused(client(sent.options))
    assert (refused.status_code, sent.advice in refused.text) == (sent.status, True), refused.text
    assert sent.right(client(sent.better or sent.options)).status_code == 200


def test_too_many_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_PARTS", 1)
    parts = uploads._Parts(tmp_path)
    parts.begin()
    with pytest.raises(uploads.Refused) as refused:
        parts.begin()
    parts.end()
    assert "send one study at a time" in str(vars(refused.value)) + str(refused.value)


def test_a_late_answer_is_refused_with_the_option_for_more_time(backend: Backend) -> None:
    work = Path("unused")
    with patch.object(backend, "_processes", SimpleNamespace(get=_never)), pytest.raises(Exception) as refused:
        backend.serve(work, work, Form(), 0.0)
    assert "allow more with --seconds" in str(vars(refused.value)) + str(refused.value)


def _never(**_: Any) -> Any:
    import queue

    raise queue.Empty


def test_other_hosts_can_be_served_with_a_token(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = ["serve", "--run", str(run.path), "--device", "cpu"]
    monkeypatch.delenv("TRAIN_SERVE_TOKEN", raising=False)
    said = CliRunner().invoke(main, [*serve, "--host", "0.0.0.0"])
    assert "set a token in TRAIN_SERVE_TOKEN, or serve on 127.0.0.1" in said.stderr
    with patch("training.study.service.run_service", lambda backend, host, port: backend.close()):
        assert CliRunner().invoke(main, [*serve, "--host", "127.0.0.1"]).exit_code == 0
        monkeypatch.setenv("TRAIN_SERVE_TOKEN", "open")
        assert CliRunner().invoke(main, [*serve, "--host", "0.0.0.0"]).exit_code == 0

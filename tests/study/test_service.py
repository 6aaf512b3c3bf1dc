"""Test the service: the answers of the command in every form, its refusals, and a log without patient names."""

import io
import json
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from fastapi.testclient import TestClient

from testkit.study import write_phantom
from tests.study.conftest import predict
from training.cli.main import main
from training.errors import StudyError
from training.run.runs import Run
from training.study.backend import Backend, Options
from training.study.building import begin_build, finish_build, make_order
from training.study.model import open_model
from training.study.pipeline_process import PipelineProcess
from training.study.service import make_app


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(tmp_path_factory.mktemp("files") / "dicom", keep=3)


@pytest.fixture(scope="module")
def backend(run: Run) -> Iterator[Backend]:
    made = Backend(open_model(run, "cpu"), Options())
    yield made
    made.close()


@pytest.fixture
def client(backend: Backend) -> TestClient:
    return TestClient(make_app(backend))


def form(files: list[Path]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (f"SECRET {file.name}", file.read_bytes(), "application/dicom")) for file in files]


def stow(files: list[Path]) -> tuple[bytes, dict[str, str]]:
    parts = [b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + file.read_bytes() + b"\r\n" for file in files]
    kind = 'multipart/related; type="application/dicom"; boundary=cut'
    return b"".join(parts) + b"--cut--\r\n", {"content-type": kind}


def zipped(files: list[Path]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in files:
            archive.write(file, f"SECRET/{file.name}")
    return content.getvalue()


def test_answers_equal_those_of_the_command_in_every_form(run, client, files, tmp_path, capfd):
    said = predict(run.path, (files[0].parent,), tmp_path / "answer", "--sr")
    assert said.exit_code == 0, said.output + said.stderr
    expected = json.loads((tmp_path / "answer" / "answer.json").read_text())
    answered = client.post("/studies", files=form(files))
    assert (answered.status_code, answered.headers["content-type"]) == (200, "application/json")
    assert answered.json() == expected
    body, headers = stow(files)
    report = client.post("/studies?answer=sr", content=body, headers=headers)
    assert report.headers["content-type"] == "application/dicom"
    theirs = pydicom.dcmread(io.BytesIO(report.content))
    mine = pydicom.dcmread(tmp_path / "answer" / "sr" / "study-1.dcm")
    assert values(theirs) == values(mine)
    page = client.post(
        "/studies", content=zipped(files), headers={"content-type": "application/zip", "accept": "text/html"}
    )
    assert page.text == (tmp_path / "answer" / "report.html").read_text()
    metrics = client.get("/metrics").text
    assert 'ich_requests_total{outcome="answered"} 3' in metrics
    assert "ich_slices_total 9" in metrics
    assert "ich_in_hand 0" in metrics
    out, err = capfd.readouterr()
    assert "SECRET" not in out + err + answered.text + page.text


def values(dataset: pydicom.Dataset) -> list[float]:
    found = [float(item.FloatingPointValue) for item in dataset.get("MeasuredValueSequence", [])]
    for child in dataset.get("ContentSequence", []):
        found += values(child)
    return found


def test_an_invalid_body_is_refused_in_one_line(client, files, tmp_path):
    body, headers = stow(files)
    cases = [
        (client.post("/studies", content=b"{}", headers={"content-type": "application/json"}), 415, "not accepted"),
        (client.post("/studies", content=body[:-40], headers=headers), 400, "has no end"),
        (client.post("/studies", content=b"junk" + body, headers=headers), 400, "is damaged"),
        (client.post("/studies?answer=pdf", content=body, headers=headers), 400, "use one of json, page, sr"),
        (client.post("/studies?identifiers=1", content=body, headers=headers), 403, "--identifiers"),
        (client.post("/studies", files=[("f", ("a", b"no DICOM", "x/y"))]), 422, "none of its files is a CT slice"),
        (
            client.post("/studies", content=zipped(files)[:400], headers={"content-type": "application/zip"}),
            422,
            "the archive is damaged",
        ),
    ]
    for answered, status, words in cases:
        assert answered.status_code == status, answered.text
        assert words in answered.json()["error"]
        assert str(tmp_path.parent.parent) not in answered.text
        assert "ich-study-" not in answered.text
    assert client.get("/health").json()["in_hand"] == 0


def test_limits_of_size_time_and_number(run, backend, files, monkeypatch):
    small = Backend(backend.model, Options(megabytes=1))
    assert TestClient(make_app(small)).post("/studies", files=form(files)).status_code == 413
    slow = Backend(backend.model, Options(seconds=1.0, builds=1))
    slow._processes.get()  # another study is being built, and does not finish in time
    late = TestClient(make_app(slow)).post("/studies", files=form(files[:1]))
    assert (late.status_code, late.json()["error"][:30]) == (504, "the study was not answered in ")
    full = Backend(backend.model, Options(waiting=1))
    assert full.counts.enter(1)
    busy = TestClient(make_app(full)).post("/studies", files=form(files[:1]))
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")


def test_a_token_is_required_if_set_and_other_hosts_need_one(backend, run, monkeypatch):
    guarded = TestClient(
        make_app(Backend(backend.model, replace(backend.options, token="open sesame")), host="0.0.0.0")
    )
    assert guarded.get("/health").status_code == 200
    assert guarded.get("/metrics").status_code == 401
    assert guarded.post("/studies").status_code == 401
    assert guarded.get("/metrics", headers={"authorization": "Bearer open sesame"}).status_code == 200
    assert TestClient(make_app(backend), base_url="http://elsewhere.example").get("/health").status_code == 400
    monkeypatch.delenv("TRAIN_SERVE_TOKEN", raising=False)
    from click.testing import CliRunner

    said = CliRunner().invoke(main, ["serve", "--run", str(run.path), "--host", "0.0.0.0"])
    assert said.exit_code == 1
    assert "set a token in TRAIN_SERVE_TOKEN" in said.stderr


def test_many_requests_at_once_some_of_them_damaged(backend, client, files, monkeypatch):
    """Every request is answered and none stays in progress; benchmarks/service.py sends a thousand."""

    def build(self, order, timeout_s):
        if any(path.read_bytes()[:4] == b"junk" for path in order.source.iterdir()):
            raise StudyError(f"{order.source}: none of its files is a CT slice")
        return prepared

    body, headers = stow(files)
    prepared = real_build(backend, files)
    monkeypatch.setattr(PipelineProcess, "build", build)

    def send(number: int) -> tuple[int, str]:
        if number % 10 == 0:
            content = body[: len(body) // 2] if number % 20 else b"--cut\r\n\r\njunk\r\n--cut--\r\n"
            answered = client.post("/studies", content=content, headers=headers)
        else:
            answered = client.post("/studies", content=body, headers=headers)
        return answered.status_code, answered.text

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(40)))
    good = {text for number, (status, text) in enumerate(answers) if number % 10}
    assert len(good) == 1
    assert [status for status, _ in answers[::10]] == [422, 400, 422, 400]
    assert {status for number, (status, _) in enumerate(answers) if number % 10} == {200}
    assert client.get("/health").json()["in_hand"] == 0


def real_build(backend: Backend, files: list[Path]) -> Path:
    work = files[0].parent.parent / f"work-{time.monotonic_ns()}"
    work.mkdir()
    return finish_build(begin_build(make_order(backend.model.run, files[0].parent, work)))

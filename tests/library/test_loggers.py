"""Test trackers: they receive the log of a run as one run, even if it was stopped, and are optional."""

import errno
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import training
from testkit import tiny_run
from testkit.bare_figures import bare_figures
from testkit.fake_cache import FakeCache, write_cache
from training.run import loop
from training.run.inference import Stopped
from training.run.loggers import Loggers, identity
from training.run.runs import open_run


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("loggers") / "cache.zarr", patients=12)


def fit(fake: FakeCache, path: Path, *loggers: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    runtime = tiny_run.runtime(loggers=loggers)
    return training.fit(fake.path, path, runtime=runtime, **tiny_run.SETTINGS)


def stop_in_the_middle(monkeypatch: pytest.MonkeyPatch, fake: FakeCache, path: Path, *loggers: str) -> None:
    """Stop a run after its seventh step; steps after its checkpoint are logged again when it resumes."""
    trained, steps = loop.train_step, []

    def stopping(*arguments: Any) -> None:
        if len(steps) == 7:
            raise Stopped
        steps.append(0)
        trained(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", stopping)
        with pytest.raises(Stopped):
            fit(fake, path, *loggers)


def logged(path: Path) -> pd.DataFrame:
    return pd.read_csv(path / "log.csv")


def test_wandb_offline_has_one_run_with_the_log_and_the_scores(
    fake: FakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_PROJECT", "bleeds")):
        monkeypatch.setenv(name, value)
    path = tmp_path / "run"
    stop_in_the_middle(monkeypatch, fake, path, "wandb")
    scores = fit(fake, path, "wandb")
    files = sorted((path / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.stem for file in files} == {f"run-{identity(open_run(path))}"}
    history = read_wandb(files)
    log = logged(path)
    train = log[log["split"] == "train"]
    assert {step: history[step] for step in train["step"]} == pytest.approx(
        dict(zip(train["step"], train["loss"], strict=True))
    )
    assert scores["weighted_log_loss"] > 0
    assert any(b"test/weighted_log_loss" in file.read_bytes() for file in files)


def read_wandb(files: list[Path]) -> dict[int, float]:
    """Return step -> loss from the files of W&B."""
    from wandb.proto import wandb_internal_pb2

    history: dict[int, float] = {}
    for content in (part for file in files for part in records(file.read_bytes())):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        line = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if "loss" in line:
            history[line["step"]] = line["loss"]
    return history


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an offline W&B file: a log in LevelDB's format after 7 bytes."""
    at, kept = 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        kept += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield kept
            kept = b""


def train_and_report_imports(path: Path, folder: Path, imported: Any) -> None:
    """Train with and without TensorBoard, and put the imported packages of other trackers into a queue."""
    torch.set_num_threads(1)
    with bare_figures():
        for number, names in enumerate([("tensorboard", "csv"), ("csv",)]):
            runtime = tiny_run.runtime(loggers=names)
            training.fit(path, folder / str(number), runtime=runtime, **tiny_run.SETTINGS | {"epochs": 1})
    imported.put({"mlflow", "wandb"} & sys.modules.keys())


def test_only_the_chosen_trackers_are_imported_and_used(fake: FakeCache, tmp_path: Path) -> None:
    imported = tiny_run.SPAWNED.SimpleQueue()
    process = tiny_run.SPAWNED.Process(target=train_and_report_imports, args=(fake.path, tmp_path, imported))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert imported.get() == set()
    assert len(list((tmp_path / "0" / "tensorboard").iterdir())) == 2  # one of the training, one of the scores
    assert not (tmp_path / "1" / "tensorboard").exists()
    assert not (tmp_path / "1" / "tracker.json").exists()
    assert len(logged(tmp_path / "1")) > 1


def test_a_tracker_that_fails_later_does_not_end_the_run(
    fake: FakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", failing)
    assert fit(fake, tmp_path / "run", "tensorboard")["weighted_log_loss"] > 0
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped logging" in line]
    assert (
        "tensorboard: stopped logging (OSError: no space left); the run continues, and log.csv has everything"
        in said[0]
    )


def test_a_tracker_that_cannot_be_opened_is_an_error_in_one_line(
    fake: FakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run.train(tmp_path / "run", fake.path, tiny_run.settings(epochs=1), loggers=("csv",))
    with pytest.raises(training.ConfigError, match="did you mean wandb"):
        Loggers(run, ["wandbb"], 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(training.ConfigError, match=r"--logger wandb: needs the package wandb; run: pip install"):
        Loggers(run, ["wandb"], 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://else")
    with pytest.raises(training.ConfigError, match="--logger mlflow: cannot be reached"):
        Loggers(run, ["mlflow"], 0)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_in_tensorboard_is_one_line_and_does_not_end_the_run(
    fake: FakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, written = RecordWriter.write, []

    def full(self: RecordWriter, data: bytes) -> None:
        written.append(data)
        if len(written) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    assert fit(fake, tmp_path / "run", "tensorboard")["weighted_log_loss"] > 0
    said = capfd.readouterr().err
    assert len([line for line in said.splitlines() if "tensorboard: stopped logging" in line]) == 1
    assert "No space left" in said
    assert "Traceback" not in said

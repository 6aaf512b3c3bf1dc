"""Test trackers with a local MLflow server: a killed and resumed run is one run, as is a head."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import training
from testkit import tiny_run
from testkit.fake_cache import FakeCache, write_cache
from training.cli.main import main

TIMEOUT_S = 180  # for the server to start: its imports take long on a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server, on a free port of the loopback interface."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{found.getsockname()[1]}"
    port = address.rpartition(":")[2]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # would start seven more processes
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, *stores], stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        )
    try:
        _wait_for(f"{address}/health", process, folder / "log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it has workers
        process.wait()


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no MLflow server: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("tracked") / "cache.zarr", patients=12)


def _train_until_killed(path: Path, cache: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    options = {"loggers": ("mlflow",), "checkpoint_every": 2}
    tiny_run.train_or_resume(path, cache, tiny_run.settings(), 40, options)


@pytest.fixture(scope="module")
def finished(server: str, fake: FakeCache) -> Path:
    """A run that was killed and then trained to the end, logged to the experiment `killed`."""
    path = fake.path.parent / "run"
    environment = {"MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": "killed"}
    process = tiny_run.SPAWNED.Process(target=_train_until_killed, args=(path, fake.path, environment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (path / "report.html").exists()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        torch.set_num_threads(1)
        runtime = tiny_run.runtime(loggers=("mlflow",))
        training.fit(fake.path, path, runtime=runtime, **tiny_run.SETTINGS)
    return path


def _runs(experiment: str) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    known = client.get_experiment_by_name(experiment)
    assert known
    return client, list(client.search_runs([known.experiment_id]))


def _same_losses(client: Any, run: Any, log: Path) -> None:
    history = client.get_metric_history(run.info.run_id, "loss")
    train = pd.read_csv(log).dropna(subset="loss")
    assert {entry.step: entry.value for entry in history} == pytest.approx(
        dict(zip(train["step"], train["loss"], strict=True))
    )


def test_a_killed_and_resumed_run_is_one_run_on_the_server(
    server: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client, (run,) = _runs("killed")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    _same_losses(client, run, finished / "log.csv")
    log = pd.read_csv(finished / "log.csv")
    for name, of in log.drop(columns=["step", "epoch", "split"]).items():
        history = client.get_metric_history(run.info.run_id, str(name))
        assert {entry.step for entry in history} >= set(log["step"][of.notna()]), name
    assert run.data.params["model"] == tiny_run.SETTINGS["model"]
    scores = json.loads((finished / "scores_test.json").read_text())
    assert run.data.metrics["test/weighted_log_loss"] == pytest.approx(scores["weighted_log_loss"])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"report.html", "model_card.md", "log.csv"}


def test_a_head_over_series_is_a_separate_run(
    server: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "heads")
    _call("features", "--run", finished)
    options = ["--epochs", 2, "--batch-size", 3, "--set", "head_features=16", "--logger", "mlflow"]
    _call("series", "--run", finished, "--out", tmp_path / "head", *options)
    client, (run,) = _runs("heads")
    assert (run.info.status, run.data.params["head"]) == ("FINISHED", "gru")
    _same_losses(client, run, tmp_path / "head" / "log.csv")
    _call("series", "--resume", tmp_path / "head", "--logger", "mlflow")
    assert len(_runs("heads")[1]) == 1


def _call(*arguments: object) -> None:
    command = [*map(str, arguments), "--device", "cpu"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output

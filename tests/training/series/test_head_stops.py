"""Test that a killed and resumed head has the same bytes, and that its folder is locked."""

import shutil
import signal
from pathlib import Path

import pytest

from testkit.tiny_run import HERE, spawn_head
from tests.training.series.test_series_run import refused
from training.run.owner import owned
from training.series.job import begin, open_base

VALUES = {"head_features": 16, "batch_size": 2, "epochs": 2}


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a head without interruption."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    process = spawn_head(path, base, VALUES, checkpoint_every=1)
    process.join()
    assert process.exitcode == 0
    return path


# While its folder is created, in its first checkpoint, in a later one, and when its shares are written.
@pytest.mark.parametrize("kill_at", [1, 14, 30, -1])
def test_killed_and_resumed_equals_undisturbed(base: Path, undisturbed: Path, tmp_path: Path, kill_at: int) -> None:
    if kill_at < 0:
        shutil.copytree(undisturbed, tmp_path / "run")
        (tmp_path / "run" / "mix.json").unlink()
        kill_at = 1  # only mix.json is left to write
    process = spawn_head(tmp_path / "run", base, VALUES, kill_at, checkpoint_every=1)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = spawn_head(tmp_path / "run", base, VALUES, checkpoint_every=1)
    again.join()
    assert again.exitcode == 0
    for name in ("weights.safetensors", "mix.json", "split.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_head_that_another_process_trains_is_refused(base: Path, tmp_path: Path) -> None:
    run, _, _ = begin(tmp_path / "run", *open_base(base), VALUES, HERE)
    with owned(run.path):
        line = refused("series", "--resume", run.path, "--device", "cpu")
    assert "is training this run; wait for it, or stop it" in line

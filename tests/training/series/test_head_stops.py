"""A head that is killed ends with the same bytes, and one trainer at a time works in its folder."""

import shutil
import signal
from pathlib import Path

import pytest

from testkit.tiny_run import HERE, spawn_head
from tests.training.series.test_series_run import refused
from training.run.owner import owned
from training.series.job import begin

VALUES = {"head_features": 16, "batch_size": 2, "epochs": 2}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that nothing disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "whole"
    process = spawn_head(path, base, VALUES, checkpoint_every=1)
    process.join()
    assert process.exitcode == 0
    return path


# At the making of its folder, in its first checkpoint, in a later one, and at the choice of its shares.
@pytest.mark.parametrize("kill_at", [1, 14, 30, -1])
def test_killed_and_resumed_equals_undisturbed(base: Path, whole: Path, tmp_path: Path, kill_at: int) -> None:
    if kill_at < 0:
        shutil.copytree(whole, tmp_path / "run")
        (tmp_path / "run" / "mix.json").unlink()
        kill_at = 1  # all that is left to write
    process = spawn_head(tmp_path / "run", base, VALUES, kill_at, checkpoint_every=1)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = spawn_head(tmp_path / "run", base, VALUES, checkpoint_every=1)
    again.join()
    assert again.exitcode == 0
    for name in ("weights.safetensors", "mix.json", "split.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_head_that_is_trained_elsewhere_is_refused(base: Path, tmp_path: Path) -> None:
    run, _, _ = begin(tmp_path / "run", base, None, VALUES, HERE)
    with owned(run.path):
        line = refused("series", "--resume", run.path, "--device", "cpu")
    assert "is training this run; wait for it, or stop it" in line

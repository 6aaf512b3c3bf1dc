"""Test flipped bits in a run's folder, two trainers of one run, and a full disk: one-line errors for each."""

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from testkit.fake_cache import write_cache
from testkit.hostile.edits import flip_bit
from tests.training.run.test_train_cli import ENVIRONMENT, QUICK, refused, train
from training.errors import NotWrittenError, RunError
from training.run.digests import FILE, begin, check, write_atomically
from training.run.log import Log
from training.run.owner import owned

# For each file, the command that reads it, and the remedy that its message must give.
READERS = {
    "settings.json": (["evaluate", "--device", "cpu", "--run"], "restore it"),
    "split.csv": (["report", "--run"], "restore it, or start a new run"),
    "linked.csv": (["report", "--run"], "restore"),
    "weights.safetensors": (["evaluate", "--device", "cpu", "--run"], "restore it, or train a new run"),
    "predictions_test.csv": (["report", "--run"], "train evaluate --run .* --split test"),
    "predictions_validation.csv": (["report", "--run"], "train evaluate --run .* --split validation"),
    "scores_test.json": (["report", "--run"], "train evaluate --run .* --split test"),
    "thresholds.json": (["report", "--run"], "train evaluate --run .* --split validation"),
    "calibration.json": (["report", "--run"], "train evaluate --run .* --split validation"),
    "looks.csv": (["report", "--run"], "restore it"),
    "log.csv": (["report", "--run"], "restore it"),
    "digests.json": (["report", "--run"], "restore it"),
    "checkpoint": (["run", "--device", "cpu", "--resume"], "remove it to resume from the previous one"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c.zarr", patients=8, slices=3).path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    path = tmp_path_factory.mktemp("runs") / "run"
    result = train("run", "--cache", cache, "--out", path, *QUICK, "--epochs", 2)
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_detected_by_the_command_that_reads_it(name, finished, tmp_path):
    command, remedy = READERS[name]
    run = shutil.copytree(finished, tmp_path / "run")
    file = sorted((run / "checkpoints").iterdir())[-1] if name == "checkpoint" else run / name
    flip_bit(file, np.random.default_rng(len(name)))
    line = refused(*command, run)
    assert file.name in line
    assert re.search(remedy, line), line


def test_the_remedy_for_a_damaged_checkpoint_works(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    newest = sorted((run / "checkpoints").iterdir())[-1]
    flip_bit(newest, np.random.default_rng(0))
    refused("run", "--resume", run, "--device", "cpu")
    newest.unlink()
    assert train("run", "--resume", run, "--device", "cpu").exit_code == 0
    assert (run / "weights.safetensors").read_bytes() == (finished / "weights.safetensors").read_bytes()


def test_the_remedy_for_damaged_predictions_works(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for name in ("predictions_test.csv", "scores_test.json"):
        flip_bit(run / name, np.random.default_rng(0))
    assert train("evaluate", "--run", run, "--device", "cpu").exit_code == 0
    assert train("report", "--run", run).exit_code == 0


def test_after_a_kill_between_digest_and_file_the_file_is_accepted(tmp_path, monkeypatch):
    begin(tmp_path)
    write_atomically(tmp_path / "a", lambda file: file.write(b"old"))
    replace = Path.replace

    def die(self, target):
        if Path(target).name == "a":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "a", lambda file: file.write(b"new"))
    check(tmp_path / "a", "")
    write_atomically(tmp_path / "a", lambda file: file.write(b"newer"))
    check(tmp_path / "a", "")
    (tmp_path / "a").write_bytes(b"other")
    with pytest.raises(RunError, match="a: is damaged"):
        check(tmp_path / "a", "")
    (tmp_path / FILE).unlink()  # without digests
    check(tmp_path / "a", "")


def test_a_run_has_one_trainer_and_a_second_is_told_about_it(finished):
    code = (
        "import sys, time; from pathlib import Path; from training.run.owner import owned\n"
        f"with owned(Path({str(finished)!r})):\n    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=ENVIRONMENT)
    try:
        assert holder.stdout.readline() == b"held\n"
        line = refused("run", "--resume", finished, "--device", "cpu")
        assert f"process {holder.pid} on" in line
    finally:
        holder.kill()
        holder.wait()
    with owned(finished):  # the lock was released when its process died
        pass


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (".step_", errno.ENOSPC),
        ("log.csv", errno.EROFS),
        (".digests.json", errno.ENOSPC),
        (".weights", errno.EROFS),
        (".predictions_test", errno.EROFS),
        (".report", errno.ENOSPC),
    ],
)
def test_a_write_error_gives_one_line_and_leaves_no_partial_files(name, number, cache, tmp_path, monkeypatch):
    path, fsync = tmp_path / "run", os.fsync

    def full(descriptor):
        begun = name != ".digests.json" or (path / "settings.json").exists()  # earlier, the same command is repeated
        if begun and Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(name):
            raise OSError(number, os.strerror(number))
        return fsync(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        line = refused("run", "--cache", cache, "--out", path, *QUICK)
    assert os.strerror(number) in line
    assert "free up space" in line
    assert not list(path.rglob("*.partial"))
    remedy = re.search(r"run: train (run --resume \S+)$", line)
    assert train(*remedy[1].split(), "--device", "cpu").exit_code == 0


@pytest.mark.parametrize("bytes_taken", [0, 64, 4096])
def test_a_checkpoint_half_written_to_a_full_disk_leaves_no_partial_files(bytes_taken, tmp_path):
    """torch.save then raises its own error."""
    begin(tmp_path)
    content = {"a": torch.zeros(10_000)}
    with limited(bytes_taken), pytest.raises(NotWrittenError, match=r"a\.pt: cannot be written \(File too large\)"):
        write_atomically(tmp_path / "a.pt", lambda file: torch.save(content, file))
    assert {path.name for path in tmp_path.iterdir()} == {FILE}


@contextlib.contextmanager
def limited(most_bytes):
    """Limit the size of each file to this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", ["run", "features", "report"])
def test_after_a_write_error_the_message_says_to_repeat_the_command(command, finished, cache, tmp_path, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    new = ("run", "--cache", cache, "--out", tmp_path / "new", *QUICK)
    words = {"run": new, "features": ("features", "--run", run, "--device", "cpu"), "report": ("report", "--run", run)}

    def read_only(descriptor):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", read_only)
        line = refused(*words[command])
    assert "cannot be written (Read-only file system)" in line
    assert line.rstrip().endswith("and run the same command again")
    assert not list(tmp_path.rglob("*.partial"))
    if command == "run":
        with patch("training.run.job.complete", side_effect=RunError("begun")):
            assert "begun" in refused(*new)
    else:
        assert train(*words[command]).exit_code == 0


@pytest.mark.parametrize(("lines", "act"), [(5000, Log.flush), (50, Log.flush), (50, Log.close)])
def test_a_write_error_of_the_log_names_its_file_whenever_it_is_noticed(lines, act, tmp_path):
    """Whether it is when the buffer is full, on flushing, or on closing."""
    log = Log(tmp_path / "log.csv")
    log.flush()

    def fill():
        for _ in range(lines):
            log.write(loss=0.5)
        act(log)

    with limited(256), pytest.raises(NotWrittenError, match=r"log\.csv: cannot be written \(File too large\)"):
        fill()

"""A build that is killed or interrupted loses nothing, and the same command resumes it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.cache import drafts, files
from pipeline.cache.lock import holds_lock, lock
from pipeline.cache.pending import read_pending
from pipeline.engine import convert
from testkit.faulty import slow_build
from testkit.kills import LEVELS, Victim, reader, run_killed, strace_works
from testkit.small import Small, check_clean, counted, run, slice_bytes, write, write_slices

needs_strace = pytest.mark.skipif(not strace_works(), reason="needs strace, and the right to trace a child")


# --- kills ---------------------------------------------------------------------------------------------------------


@needs_strace
def test_a_first_build_killed_at_any_rename_can_be_resumed(tmp_path):
    when = 0
    killed = True
    while killed:
        when += 1
        folder = tmp_path / str(when)
        folder.mkdir()
        small = Small(folder)
        write_slices(small.src, range(10))
        killed = run_killed(small.build, "rename", when) is None
        small.build()
        small.verify()
        assert not list(small.out.rglob("*.partial"))
        if when == 1:
            expected = small.digest()
        assert small.digest() == expected
    assert when > 15


@needs_strace
@pytest.mark.parametrize(
    ("act", "syscall", "step", "at_least"),
    [("change", "rename", 3, 5), ("rewindow", "rename", 6, 3), ("relabel", "rename", 4, 2), ("change", "write", 9, 2),
     ("collect", "unlink", 2, 3), ("damage", "rename", 3, 5)],
)  # fmt: skip
def test_a_kill_at_any_step_is_invisible_to_a_reader(tmp_path, act, syscall, step, at_least):
    victim = Victim.make(tmp_path)
    if act in ("collect", "damage"):  # these remove what a reader may be using
        assert victim.kill_at_each(getattr(victim, act), syscall, step) >= at_least
        return
    valid = victim.valid_images(LEVELS if act == "rewindow" else LEVELS[:1])
    with reader(victim.small.out, valid) as seen:
        assert victim.kill_at_each(getattr(victim, act), syscall, step) >= at_least
    assert (seen.wrong, seen.problems) == (0, [])
    assert seen.views > 0


def test_a_build_killed_twice_rebuilds_no_finished_shard(small, monkeypatch):
    """The first two builds end after one shard each; the third only builds the remaining shards."""
    publish, left = drafts.Drafts.publish, [1]

    def publish_and_die(self, paths, last):
        publish(self, paths, last)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(drafts.Drafts, "publish", publish_and_die)
    small.build(code=130)
    assert len(small.cache.recorded_shards()) == 1
    write(small.src / "new.dcm", slice_bytes(30))
    (small.src / read_pending(small.cache).shards[2][0].path).unlink()
    left[0] = 1
    small.build(code=130)
    assert len(small.cache.recorded_shards()) == 2
    left[0] = -1
    with counted() as work:
        small.build()
    assert sorted(Path(shard).parts[-4] for shard in work.shards) == ["2", "3"]
    assert len(work.read) == 4, "3 of the last planned shard, and the new one"
    check_clean(small)


def test_a_kill_between_the_commit_and_its_copies_is_repaired(small):
    small.build()
    (small.src / "000.dcm").unlink()
    run_without_copies(small)
    assert "metadata.csv" in small.verify(code=1).stdout
    small.build()
    small.verify()


def run_without_copies(small: Small) -> None:
    from pipeline.cache import copies

    update = copies.update_copies
    copies.update_copies = lambda root, commit: False
    try:
        small.build("--prune")
    finally:
        copies.update_copies = update


@pytest.mark.parametrize(
    ("begun", "end", "code"),
    [(0, signal.SIGINT, 130), (1, signal.SIGINT, 130), (1, signal.SIGHUP, 129), (1, signal.SIGTERM, 143)],
    ids=["while workers start", "while they work", "terminal closed", "preempted"],
)
def test_an_interrupted_build_says_how_to_resume(small, begun, end, code, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(small.folder / "tmp"))
    (small.folder / "tmp").mkdir()
    small.build()
    for number in range(20, 100):
        write(small.src / f"{number}.dcm", slice_bytes(number))
    process = slow_build(small, workers=1, pause_s=0.1)
    assert process.stderr.readline() == "80 new files are converted\n"
    while len(small.cache.recorded_shards()) < 3 + begun or not psutil.Process(process.pid).children():
        time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
    started = time.monotonic()
    if end == signal.SIGTERM:
        process.terminate()
    else:
        os.killpg(process.pid, end)  # like a terminal, which also signals the workers
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == code
    assert not list((small.folder / "tmp").glob("pipeline-*"))
    assert said.splitlines()[-1] == "interrupted; finished work is kept: run the same command to continue"
    assert "Traceback" not in said
    finished = len(small.cache.recorded_shards())
    assert finished < 3 + 10
    with counted() as work:
        small.build()
    assert len(work.shards) == 3 + 10 - finished
    small.verify()


# --- two builders --------------------------------------------------------------------------------------------------


def test_a_second_builder_is_told_who_holds_the_lock_and_since_when(small):
    with lock(small.cache):
        said = small.build(code=1).stderr
    assert f"process {os.getpid()} on" in said
    assert "since 20" in said
    small.build()


def test_the_lock_dies_with_its_process(small):
    code = f"from pathlib import Path; from pipeline.cache.lock import lock; from pipeline.cache.paths import Cache; lock(Cache(Path({str(small.out)!r}))).__enter__(); import os; os.kill(os.getpid(), 9)"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    small.build()


def test_a_worker_that_outlives_its_builder_does_not_publish(small, monkeypatch):
    """Another builder has taken the lock by the time that the first one's shard is ready."""
    fill = convert.fill

    def fill_and_be_outlived(self):
        result = fill(self)
        files.write_atomic(small.out / ".pipeline" / "lock", b'{"token": "of another"}')
        return result

    monkeypatch.setattr(convert, "fill", fill_and_be_outlived)
    assert "another build has taken over" in small.build(code=1).stderr
    assert small.cache.recorded_shards() == []
    assert not list(small.out.rglob("c/*/0/0/0"))
    monkeypatch.undo()
    small.build()
    check_clean(small)


def test_the_token_is_void_once_its_builder_has_ended(small):
    small.build()
    with lock(small.cache) as token:
        assert holds_lock(small.cache, token)
    assert not holds_lock(small.cache, token)


def test_a_refused_build_leaves_no_folder(tmp_path, small):
    empty = tmp_path / "empty"
    empty.mkdir()
    run("build", "--src", empty, "--out", small.out, code=1)
    assert not small.out.exists()

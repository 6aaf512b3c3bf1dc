"""Local workers: files that kill them, workers that are killed, and the checks before a worker's first task."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cache.lock import lock
from pipeline.cache.paths import Cache
from pipeline.dicom.records import Unit
from pipeline.engine import preflight
from pipeline.engine.context import Context
from pipeline.engine.progress import ShownProgress
from pipeline.engine.versions import library_versions
from pipeline.errors import CacheError, SourceError
from pipeline.planning import survey
from pipeline.planning.jobs import ShardJob
from pipeline.source.files import Buffer
from pipeline.source.folder import Folder
from pipeline.source.listing import Stamp
from testkit.faulty import FAULTS, Faulty, check_neighbours, slow_build
from testkit.small import Small, run, write_slices


@pytest.fixture
def small(tmp_path, monkeypatch) -> Small:
    """24 slices in 6 shards, from a source that `Faulty` reads."""
    monkeypatch.setattr(survey, "open_source", lambda src: Faulty(src))
    small = Small(tmp_path, rows=4)
    write_slices(small.src, range(24))
    return small


def after_shards(monkeypatch, count: int, act) -> None:
    """Call `act` when a build has finished `count` shards."""
    finished = []
    shard_done = ShownProgress.shard_done

    def acting(self, job, result):
        shard_done(self, job, result)
        finished.append(job)
        if len(finished) == count:
            act()

    monkeypatch.setattr(ShownProgress, "shard_done", acting)


def test_files_that_kill_their_worker_are_rejected_and_the_others_are_built(tmp_path):
    """24 files in one shard; benchmarks/faults.py has 2,000."""
    messages = check_neighbours(tmp_path, files=24, rows=32).set_index("path")["message"]
    assert sorted(messages.index) == sorted(f"{kind}-1.dcm" for kind in FAULTS)
    assert "took more than 60 s" in messages["hang-1.dcm"]
    assert "too much memory" in messages["bomb-1.dcm"]
    assert "ended the process" in messages["abort-1.dcm"]


def test_a_killed_worker_does_not_change_the_result(small, monkeypatch):
    monkeypatch.setattr(survey, "open_source", lambda src: Faulty(src, pause_s=0.05))

    def kill_one():
        next(child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())).kill()

    after_shards(monkeypatch, 1, kill_one)
    run("build", *small.options(), "--workers", 2)
    assert not list(small.out.rglob("*.partial"))
    assert small.digest() == small.clean_digest(small.folder / "clean")


def test_a_killed_build_leaves_no_process_and_can_be_resumed(small):
    process = slow_build(small, workers=2, pause_s=0.2)
    records = small.out / ".pipeline" / "shards"
    while not (records.is_dir() and any(records.glob("*.json"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = {file.name: file.stat().st_mtime_ns for file in records.glob("*.json")}
    assert "a build was interrupted" in small.build().stderr
    kept = {file.name: file.stat().st_mtime_ns for file in records.glob("*.json")}
    assert done.items() <= kept.items()
    assert small.digest() == small.clean_digest(small.folder / "clean")
    for _ in range(200):
        if not _members(process.pid):
            return
        time.sleep(0.1)
    pytest.fail(f"processes are left: {_members(process.pid)}")


@dataclass(frozen=True)
class Stalling(Folder):
    """A folder whose server does not respond the first `times` times that one file is read."""

    times: int = 0

    def read(self, path: str, buffer: Buffer, *how: Any, **past: Any) -> tuple[memoryview, Stamp]:
        log = Path(self.root).parent / "requests"  # one byte per request
        if path == "005.dcm" and (count := len(log.read_bytes()) if log.exists() else 0) < self.times:
            log.write_bytes(bytes(count + 1))
            raise SourceError(f"{self.root}: no answer")
        return super().read(path, buffer, *how, **past)


@pytest.mark.parametrize(("times", "code"), [(2, 0), (3, 1)])
def test_a_stalled_source_is_read_again(small, monkeypatch, times, code):
    monkeypatch.setattr(survey, "open_source", lambda src: Stalling(src, times=times))
    outcome = run("build", *small.options(), "--workers", 1, code=code)
    assert ("error: " in outcome.stderr) == bool(code)
    if code:
        assert outcome.stderr.splitlines()[-1].endswith("dicoms: no answer")


def _members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    alive = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.pid)
    return alive


# --- checks of a worker --------------------------------------------------------------------------------------------


@pytest.fixture
def job(small) -> Iterator[tuple[Context, ShardJob]]:
    small.build()
    with lock(small.cache) as token:
        context = Context(Faulty(str(small.src)), small.cache, token, None, "", None, (), 4, {})
        yield context, ShardJob(0, (Unit(0, "000.dcm"), Unit(1, "001.dcm")), ())


def test_a_working_worker_is_checked_once(job, monkeypatch):
    context, task = job
    preflight.check_worker(context, task)
    monkeypatch.setattr(preflight, "holds_lock", None)
    preflight.check_worker(context, task)


def test_a_worker_with_other_libraries_is_refused():
    with pytest.raises(CacheError, match=r"worker on .*: numpy .*, the build was started with 0\.1; install"):
        preflight.check_versions({**library_versions(), "numpy": "0.1"})
    with pytest.raises(CacheError, match="rare-decoder none"):
        preflight.check_versions({**library_versions(), "rare-decoder": "1"})
    preflight.check_versions({**library_versions(), "python": "3.1"})


def test_a_worker_on_another_file_system_is_refused(job, tmp_path):
    context, task = job
    with pytest.raises(CacheError, match="does not see this build's lock"):
        preflight.check_worker(replace(context, cache=Cache(tmp_path / "elsewhere")), task)


def test_a_worker_without_the_source_is_refused(job, tmp_path):
    context, task = job
    with pytest.raises(CacheError, match=r"does not see the source \(001\.dcm, for example\)"):
        preflight.check_worker(replace(context, source=Folder(str(tmp_path))), task)


def test_a_worker_that_cannot_write_is_refused(job, monkeypatch):
    """The file system may be mounted read-only on the worker's machine."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(CacheError, match=r"worker on .*: cannot write to .*; make --out writable"):
        preflight.check_worker(*job)

"""Failing disks, lost sources, and readers of old commits: nothing is lost."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.cache import drafts
from testkit.history import check_history
from testkit.kills import read_view, strace_works
from testkit.small import Small, check_clean, counted, slice_bytes, write

needs_strace = pytest.mark.skipif(not strace_works(), reason="needs strace, and the right to trace a child")


# --- disk, permission, source --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EACCES", "EROFS", "EIO"])
@pytest.mark.parametrize(("syscall", "when"), [("fsync", 1), ("rename", 3), ("write", 2), ("mkdir", 2)])
@needs_strace
def test_a_failing_disk_is_one_line_and_the_old_commit_stays(small, error, syscall, when):
    small.build()
    before = zarr.open_group(small.out, mode="r").attrs["commit"]
    write(small.src / "new.dcm", slice_bytes(30))
    code, said = fails(small, f"inject={syscall}:error={error}:when={when}" + "+" * (syscall != "write"))
    assert code == 1, said
    [line] = [line for line in said.splitlines() if line.startswith("error:")]
    assert ("the disk is full" in line) == (error in ("ENOSPC", "EDQUOT"))
    assert "run the same command again" in line
    assert "Traceback" not in said
    assert zarr.open_group(small.out, mode="r").attrs["commit"] == before
    small.build()
    small.verify()


def fails(small: Small, inject: str) -> tuple[int, str]:
    """Build under strace, which injects an error into a system call; return the exit code and the output."""
    path = small.folder / "said"
    waiting, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(waiting, 1)
        code = 99
        try:
            result = small.build(code=None)
            path.write_text(result.output)
            code = result.exit_code
        finally:
            os._exit(code)
    strace = subprocess.Popen(["strace", "-f", "-qq", "-p", str(pid), "-o", os.devnull, "-e", inject])
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.001)
    os.write(go, b"g")
    status = os.waitpid(pid, 0)[1]
    strace.wait()
    return os.WEXITSTATUS(status), path.read_text()


def test_a_source_lost_during_a_build_is_one_line_and_the_build_is_resumable(small, monkeypatch):
    small.build()
    before = zarr.open_group(small.out, mode="r").attrs["commit"]
    for number in range(20, 40):
        write(small.src / f"{number}.dcm", slice_bytes(number))
    publish = drafts.Drafts.publish

    def publish_and_lose_the_source(self, paths, last):
        publish(self, paths, last)
        if small.src.exists():
            small.src.rename(small.folder / "unmounted")

    monkeypatch.setattr(drafts.Drafts, "publish", publish_and_lose_the_source)
    said = small.build(code=1).stderr
    assert "vanished or changed before it was read" in said
    assert zarr.open_group(small.out, mode="r").attrs["commit"] == before
    assert "No such file or directory" in small.build(code=1).stderr
    monkeypatch.undo()
    (small.folder / "unmounted").rename(small.src)
    with counted() as work:
        small.build()
    assert len(work.shards) == 2, "one of three was finished before the source was lost"
    check_clean(small)


def test_an_unresponsive_file_system_does_not_make_files_count_as_damaged(small, monkeypatch):
    import errno

    from pipeline.source.folder import Folder

    def no_answer(self, path, buffer, *how, **past):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Folder, "read", no_answer)
    assert "the source is gone (Stale file handle)" in small.build(code=1).stderr
    monkeypatch.undo()
    small.build()
    check_clean(small)


# --- readers -------------------------------------------------------------------------------------------------------


def test_a_reader_of_an_old_commit_is_not_affected(small):
    import json

    small.build()
    group = zarr.open_group(small.out, mode="r")
    attributes = dict(group.attrs)
    path = attributes["sizes"]["8"]
    before, table = group[path][:20], (small.out / attributes["metadata"]["file"]).read_bytes()
    for change in range(4):
        write(small.src / "003.dcm", slice_bytes(3, change + 1), 10**18 + change * 10**9)
        small.level = 50 + change
        small.build()
        np.testing.assert_array_equal(group[path][:20], before)
        again = json.loads((small.out / "commits" / f"{attributes['commit']}.json").read_bytes())
        assert again["attributes"] == attributes
        assert (small.out / attributes["metadata"]["file"]).read_bytes() == table
        reopened = zarr.open_array(small.out / path, mode="r")
        np.testing.assert_array_equal(reopened[:20], before)
    commit, problems = read_view(small.out, everything_valid(small))
    assert commit != attributes["commit"]
    assert problems == []


def everything_valid(small: Small) -> dict[str, set[str]]:
    import json

    valid: dict[str, set[str]] = {f"1.2.3.0.{number}": set() for number in range(20)}
    for record in small.out.glob(".pipeline/shards/*"):
        content = json.loads(record.read_bytes().partition(b"\n")[2])
        for array in content["arrays"].values():
            for uid, digest in zip(content["slices"]["sop_instance_uid"], array["digests"], strict=False):
                valid[uid].add(digest)
    return valid


# --- histories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_the_content_does_not_depend_on_the_history(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nothing is killed here
    check_history(tmp_path, seed, changes=4)
    assert not shutil.os.listdir(tmp_path)

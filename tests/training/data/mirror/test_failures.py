"""Test transient errors, a lost network, a full disk and damaged copies: one-line errors, and the next run resumes."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from testkit.fake_cache import FakeCache
from testkit.faulty_store import FaultyStore, check_epoch, fail, message, shards, stream_of
from training.data.cache import open_cache


def test_a_failing_request_is_repeated(fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore]) -> None:
    store.fault = fail(2, ConnectionResetError("reset by peer"))
    check_epoch(fake, stream_of(open_cache(address, local_copy=tmp_path / "copies")))


@pytest.mark.parametrize("error", [TimeoutError("no answer"), RuntimeError("two\nlines"), PermissionError("forbidden")])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_lost_network_gives_a_one_line_error_and_the_next_run_resumes(
    fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore], error: Exception, threads: int
) -> None:
    copies = tmp_path / "copies"
    cache = open_cache(address, local_copy=copies)
    list(stream_of(cache, threads, np.flatnonzero(cache.table["row"] // 8 < 10)).epoch(0, 0))
    stream = stream_of(cache, threads)
    store.fault = fail(1000, error)
    text = message(lambda: check_epoch(fake, stream))
    assert [word for word in (address, "network", "run the same command again") if word not in text] == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("mirror", "stream"))]
    store.reset()
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies), threads))
    assert len(store.whole()) == len(shards(fake.path)) - 10


def test_a_file_missing_at_the_origin_is_damage_of_the_origin(address: str, tmp_path: Path) -> None:
    cache = open_cache(address, local_copy=tmp_path / "copies")
    lost = shards(tmp_path / "cache.zarr")[0]
    lost.unlink()
    text = message(lambda: stream_of(cache))
    assert f"faulty://{lost}: is missing" in text
    assert "verify --repair" in text


def test_a_full_disk_gives_a_one_line_error_and_leaves_nothing_behind(
    fake: FakeCache, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = tmp_path / "copies"
    stream = stream_of(open_cache(address, local_copy=copies))
    sync, left = os.fsync, iter(range(10))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    text = message(lambda: check_epoch(fake, stream))
    assert [word for word in (str(copies), "No space left", "--local-copy") if word not in text] == []
    assert list(copies.rglob("*.partial")) == []
    assert len(shards(copies)) == 10
    monkeypatch.undo()
    check_epoch(fake, stream)


def test_a_damaged_copy_is_detected_and_restored_after_its_removal(
    fake: FakeCache, address: str, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    stream = stream_of(open_cache(address, local_copy=copies))
    check_epoch(fake, stream)
    row = int(fake.table["row"][7])
    copy = next(copy for copy in shards(copies) if copy.parts[-4] == str(row // 8))
    content = bytearray(copy.read_bytes())
    start, length = np.frombuffer(content[-(8 * 16 + 4) : -4], "<u8").reshape(8, 2)[row % 8]
    content[int(start + length // 2)] ^= 1
    copy.write_bytes(content)
    again = stream_of(open_cache(address, local_copy=copies))
    text = message(lambda: check_epoch(fake, again))
    assert [w for w in (str(copy), fake.table["sop_instance_uid"][7], "remove this file") if w not in text] == []
    copy.unlink()
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))


@pytest.mark.parametrize("length", [0, 5, 1000])
def test_a_truncated_copy_is_copied_again(fake: FakeCache, address: str, tmp_path: Path, length: int) -> None:
    copies = tmp_path / "copies"
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))
    for copy in shards(copies)[::5]:
        os.truncate(copy, length)
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))


def test_a_damaged_table_says_what_to_remove(address: str, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    open_cache(address, local_copy=copies)
    (table,) = copies.rglob("tables/*.csv")
    table.write_bytes(table.read_bytes()[:-9])
    text = message(lambda: open_cache(address, local_copy=copies))
    assert f"{table}: " in text
    assert "remove this file" in text
    table.unlink()
    open_cache(address, local_copy=copies)

"""Test that processes share the copies of a cache, and that a killed one does not block the others."""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from testkit.fake_cache import CACHE, FakeCache
from testkit.faulty_store import SIZE, FaultyStore, check_epoch, shards, stream_of
from training.data.cache import open_cache
from training.data.mirror import Mirror

FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def read_slowly(address: str, copies: Path, rank: int, world: int, answers: Any) -> None:
    FaultyStore.delay_s = 0.01
    cache = open_cache(address, local_copy=copies)
    pixels = {}
    for batch in stream_of(cache).epoch(0, 0, rank=rank, world=world):
        for line, image in zip(batch.lines.tolist(), batch.images.numpy(), strict=True):
            pixels[line] = image.tobytes()
    answers.put((pixels, FaultyStore.whole()))


@FORKS
def test_processes_share_the_copies(fake: FakeCache, address: str, tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [
        context.Process(target=read_slowly, args=(address, tmp_path / "copies", rank, 3, answers)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    read = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    pixels = {line: image for part, _ in read for line, image in part.items()}
    assert pixels == {line: image.tobytes() for line, image in enumerate(fake.images[SIZE])}
    asked: Counter[str] = sum((whole for _, whole in read), Counter())
    assert len(asked) == len(shards(fake.path))
    assert set(asked.values()) == {1}
    assert list((tmp_path / "copies").rglob("*.partial")) == []


def bring_and_hang(address: str, copies: Path, name: str) -> None:
    os.fsync = lambda descriptor: time.sleep(600)  # type: ignore[assignment]
    Mirror(address, copies, CACHE).fetch(name, 4)


@FORKS
def test_a_killed_process_does_not_block_others(fake: FakeCache, address: str, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    name = f"images/{SIZE}-0badcafe/c/0/0/0/0"
    process: Any = multiprocessing.get_context("fork").Process(target=bring_and_hang, args=(address, copies, name))
    process.start()
    deadline = time.monotonic() + 60
    while not (partial := list(copies.rglob("*.partial"))) or not partial[0].stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(timeout=60)
    assert shards(copies) == []
    assert len(list(copies.rglob("*.partial"))) == 1
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))
    assert list(copies.rglob("*.partial")) == []


def test_many_writers_of_one_file_fetch_it_once(address: str, tmp_path: Path, store: type[FaultyStore]) -> None:
    """Several threads, each with a separate mirror, as for several streams in one process."""
    name = f"images/{SIZE}-0badcafe/c/0/0/0/0"
    store.delay_s = 0.02
    together = threading.Barrier(20)
    found = []

    def fetch() -> None:
        mirror = Mirror(address, tmp_path / "copies")
        mirror.tail(name, 132)
        together.wait()
        found.append(mirror.fetch(name, 132).read_bytes())

    threads = [threading.Thread(target=fetch) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.whole().values()) == {1}
    assert set(found) == {(tmp_path / "cache.zarr" / name).read_bytes()}
    assert len(found) == 20

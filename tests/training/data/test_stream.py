"""Test the stream: the right pixels in the right order, from any number of threads and in any process."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from testkit.fake_cache import FakeCache, write_cache
from testkit.streams import SIZE, flat, lines_of, stream_of, stream_threads
from training import system
from training.data.cache import open_cache
from training.data.copies import on_device
from training.data.stream import Stream, permutation

N = 60


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("stream") / "cache.zarr", patients=12, unlabelled=4)


@pytest.mark.parametrize("compressor", ["lz4", "lz4hc", "zstd"])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_batches_equal_what_zarr_reads(tmp_path: Path, compressor: str, threads: int) -> None:
    fake = write_cache(tmp_path / "cache.zarr", patients=6, compressor=compressor, unlabelled=2)
    cache = open_cache(fake.path)
    stored = zarr.open_group(fake.path, mode="r")[f"images/{SIZE}-0badcafe"]
    seen = []
    for batch in Stream(cache, SIZE, np.arange(cache.num_slices), 7, threads).epoch(3, 1):
        lines = batch.lines.numpy()
        rows = cache.table["row"].to_numpy()[lines]
        assert batch.images.dtype == torch.uint8
        assert np.array_equal(batch.images.numpy(), stored.oindex[rows])  # type: ignore[union-attr]
        assert np.array_equal(batch.images.numpy(), fake.images[SIZE][lines])
        assert np.array_equal(batch.labels.numpy(), cache.labels()[lines], equal_nan=True)
        assert np.array_equal(batch.z_norm.numpy(), cache.table["z_norm"].to_numpy(np.float32)[lines])
        assert np.array_equal(batch.keys.numpy().view(np.uint64), cache.keys[lines])
        seen.extend(lines.tolist())
    assert sorted(seen) == list(range(cache.num_slices))


def test_a_stream_of_selected_lines(fake: FakeCache) -> None:
    stream = Stream(open_cache(fake.path), SIZE, np.array([40, 3, 17]), 2)
    assert sorted(flat(lines_of(stream))) == [3, 17, 40]
    assert lines_of(stream, shuffle=False) == [[3, 17], [40]]


def test_a_cache_without_labels_can_be_streamed(tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr", classes=())
    (first, *_) = stream_of(fake.path).epoch(0, 0)
    assert first.labels.shape == (8, 0)


def test_thread_count_does_not_change_the_batches(fake: FakeCache) -> None:
    expected = lines_of(stream_of(fake.path, threads=0))
    for threads in (1, 2, 4):
        assert lines_of(stream_of(fake.path, threads=threads)) == expected


def test_the_order_depends_on_seed_and_epoch(fake: FakeCache) -> None:
    stream = stream_of(fake.path)
    orders = [flat(lines_of(stream, seed, epoch)) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_does_not_depend_on_rows(tmp_path: Path) -> None:
    orders = []
    for row_seed in (0, 1):
        fake = write_cache(tmp_path / str(row_seed), row_seed=row_seed)
        uids = fake.table["sop_instance_uid"].to_numpy()
        orders.append(uids[flat(lines_of(stream_of(fake.path)))].tolist())
    assert orders[0] == orders[1]


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50), st.integers(0, 2**63), st.integers(0, 1000))
def test_the_permutation_depends_only_on_the_set_of_keys(keys: list[int], seed: int, epoch: int) -> None:
    forth = np.array(keys, np.uint64)
    back = forth[::-1]
    assert sorted(permutation(forth, seed, epoch)) == list(range(len(keys)))
    assert forth[permutation(forth, seed, epoch)].tolist() == back[permutation(back, seed, epoch)].tolist()


def test_permutations_of_four_are_equally_frequent() -> None:
    keys = np.arange(4, dtype=np.uint64)
    counts = Counter(tuple(permutation(keys, seed, epoch)) for seed in range(60) for epoch in range(200))
    expected = 12_000 / 24
    assert len(counts) == 24
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 49.7  # the 99.9 % quantile for 23 degrees of freedom


@given(st.integers(1, N), st.integers(1, 9), st.sampled_from([1, 2, 3, 4]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_processes_share_the_global_batches(
    fake: FakeCache, n: int, together: int, world: int, drop_last: bool
) -> None:
    cache = open_cache(fake.path)
    alone = Stream(cache, SIZE, np.arange(n), together * world, threads=0)
    shared = Stream(cache, SIZE, np.arange(n), together, threads=0)
    expected = lines_of(alone, drop_last=drop_last)
    parts = [lines_of(shared, rank=rank, world=world, drop_last=drop_last) for rank in range(world)]
    assert [flat(list(batch)) for batch in zip(*parts, strict=True)] == expected
    assert len(expected) == shared.num_batches(world, drop_last=drop_last) == alone.num_batches(drop_last=drop_last)
    assert sorted(flat(expected))[: n if not drop_last else 0] == list(range(n if not drop_last else 0))
    assert all(len(batch) == together * world for batch in expected[: n // (together * world)])


@given(st.integers(0, 8))
@settings(max_examples=9, deadline=None)
def test_a_resumed_epoch_continues_where_it_stopped(fake: FakeCache, skip_batches: int) -> None:
    stream = stream_of(fake.path)
    assert lines_of(stream, skip_batches=skip_batches) == lines_of(stream)[skip_batches:]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_batch_is_valid_until_the_next_is_requested(fake: FakeCache, threads: int) -> None:
    stream = stream_of(fake.path, threads=threads, ahead=2)
    for epoch in range(3):
        for batch in stream.epoch(0, epoch):
            lines = batch.lines.clone()
            time.sleep(0.005)  # let the threads fill all that they can
            assert torch.equal(batch.lines, lines)
            assert np.array_equal(batch.images.numpy(), fake.images[SIZE][lines.numpy()])


def test_two_epochs_at_once_do_not_share_memory(fake: FakeCache) -> None:
    stream = stream_of(fake.path)
    for one, two in zip(stream.epoch(0, 0), stream.epoch(0, 1), strict=True):
        for batch in (one, two):
            assert np.array_equal(batch.images.numpy(), fake.images[SIZE][batch.lines.numpy()])


def test_memory_is_reused(fake: FakeCache) -> None:
    stream = stream_of(fake.path, batch_size=4, ahead=2)
    addresses = {batch.images.data_ptr() for epoch in range(3) for batch in stream.epoch(0, epoch)}
    assert len(addresses) <= 4


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_end_with_the_iterator(fake: FakeCache, threads: int) -> None:
    batches = stream_of(fake.path, threads=threads).epoch(0, 0)
    next(batches)
    assert stream_threads()
    batches.close()
    assert stream_threads() == []


def test_cold_reads_give_the_same_batches(fake: FakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every batch as one that had to wait for the disk, so that all of them are prefetched."""
    faults = itertools.count()
    expected = lines_of(stream_of(fake.path))
    monkeypatch.setattr(system, "disk_reads", lambda: next(faults))
    stream = stream_of(fake.path)
    assert lines_of(stream) == expected
    assert stream._cold_until > 0


def read_all(stream: Stream, answers: "multiprocessing.Queue[list[list[int]]]") -> None:
    answers.put(lines_of(stream))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_stream_works_in_another_process(fake: FakeCache, method: str) -> None:
    stream = stream_of(fake.path)
    expected = lines_of(stream)  # so that its shards are mapped and its ring exists when the process starts
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=read_all, args=(stream, answers))
    process.start()
    assert answers.get(timeout=300) == expected
    process.join(timeout=60)
    assert process.exitcode == 0


def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr", patients=40, rows_per_shard=1, sizes=(8,))
    program = f"""
import numpy as np, resource
from training.data.cache import open_cache
from training.data.shards import SliceReader
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
lines = np.arange({len(fake.table)})
out = np.empty((len(lines), 3 * 8 * 8), np.uint8)
reader = SliceReader(open_cache({str(fake.path)!r}), 8, lines)
for _ in range(2):
    reader.read(lines, out)
np.save({str(tmp_path / "out.npy")!r}, out)
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=True, timeout=300)
    assert np.array_equal(np.load(tmp_path / "out.npy"), fake.images[8].reshape(len(fake.table), -1))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_interrupt_ends_the_epoch_and_its_threads(fake: FakeCache, threads: int) -> None:
    # A shell makes its background jobs ignore interrupts, and the tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = stream_of(fake.path, threads=threads)

    def go_on_for_ever() -> None:
        while True:
            lines_of(stream)

    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            go_on_for_ever()
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    # If the interrupt comes at the end of an epoch, its threads have been told to stop but may still be running.
    told = time.monotonic()
    while stream_threads() and time.monotonic() < told + 10:
        time.sleep(0.01)
    assert stream_threads() == []


def test_threads_that_open_too_many_shards_read_correctly(fake: FakeCache) -> None:
    """At most two shards are mapped, so the threads constantly evict each other's."""
    stream = stream_of(fake.path, batch_size=4, threads=4)
    stream._reader._most_open = 2
    for epoch in range(20):
        for batch in stream.epoch(0, epoch):
            assert np.array_equal(batch.images.numpy(), fake.images[SIZE][batch.lines.numpy()])


def test_on_device_gives_the_same_batches(fake: FakeCache) -> None:
    expected = lines_of(stream_of(fake.path))
    batches = on_device(stream_of(fake.path).epoch(0, 0), torch.device("cpu"))
    assert [batch.lines.tolist() for batch in batches] == expected

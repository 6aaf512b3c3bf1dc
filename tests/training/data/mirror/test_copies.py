"""Test that a remote cache is read through local copies, and that only files that are read are copied, once."""

import shutil
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest

from testkit.fake_cache import FakeCache, write_cache
from testkit.faulty_store import SIZE, FaultyStore, check_epoch, message, shards, stream_of
from training.data.cache import open_cache


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_files_that_are_read_are_copied_once(
    fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore], threads: int
) -> None:
    copies = tmp_path / "copies"
    cache = open_cache(address, local_copy=copies)
    stream = stream_of(cache, threads)
    check_epoch(fake, stream)
    asked = store.whole()
    assert len(asked) == len(shards(copies)) > 30
    assert set(asked.values()) == {1}
    for copy in shards(copies):
        origin = fake.path / copy.relative_to(next(copies.iterdir()))
        assert copy.read_bytes() == origin.read_bytes()
    store.reset()
    check_epoch(fake, stream, 1)
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))
    assert store.whole() == Counter()


def test_a_cache_at_an_address_is_the_same_as_in_its_folder(fake: FakeCache, address: str, tmp_path: Path) -> None:
    near, far = open_cache(fake.path), open_cache(address, local_copy=tmp_path / "copies")
    assert far.path == address
    assert (far.commit, far.windows, far.classes, far.sizes) == (near.commit, near.windows, near.classes, near.sizes)
    assert far.table.equals(near.table)
    rows = near.table["row"].to_numpy()
    assert np.array_equal(far.sums(SIZE, rows), near.sums(SIZE, rows))
    assert open_cache(address, near.commit, tmp_path / "copies").table.equals(near.table)
    assert f"did you mean {near.commit}?" in message(
        lambda: open_cache(address, near.commit[:-1] + "x", tmp_path / "copies")
    )


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_folder_and_any_fsspec_store_can_be_read(fake: FakeCache, tmp_path: Path, kind: str) -> None:
    address = str(fake.path)
    if kind == "memory":
        address = "memory://bucket/cache.zarr/"
        fsspec.filesystem("memory").put(str(fake.path), "bucket/cache.zarr", recursive=True)
    check_epoch(fake, stream_of(open_cache(address, local_copy=tmp_path / "copies")))
    assert len(shards(tmp_path / "copies")) == len(shards(fake.path))


def test_only_files_that_are_read_are_copied(fake: FakeCache, address: str, tmp_path: Path) -> None:
    cache = open_cache(address, local_copy=tmp_path / "copies")
    lines = np.flatnonzero(cache.table["row"] // 8 < 3)
    list(stream_of(cache, lines=lines).epoch(0, 0))
    assert len(shards(tmp_path / "copies")) == 3


def test_several_shards_are_copied_at_a_time(
    fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore]
) -> None:
    stream = stream_of(open_cache(address, local_copy=tmp_path / "copies"))
    store.most_at_once, store.delay_s = 0, 0.05
    check_epoch(fake, stream)
    assert 8 <= store.most_at_once <= 17  # 16 in the background, and the thread that fills a batch


def test_copies_of_another_cache_at_the_address_are_replaced(fake: FakeCache, address: str, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    old = open_cache(address, local_copy=copies)
    check_epoch(fake, stream_of(old))
    old.sums(SIZE, np.arange(8))
    shutil.rmtree(tmp_path / "cache.zarr")
    new = write_cache(tmp_path / "cache.zarr", patients=40, seed=9)
    cache = open_cache(address, local_copy=copies)
    assert cache.table["image_id"].tolist() == new.table["image_id"].tolist()
    check_epoch(new, stream_of(cache))
    rows = new.table["row"].to_numpy()
    assert np.array_equal(cache.sums(SIZE, rows), open_cache(new.path).sums(SIZE, rows))


def test_a_cache_that_is_replaced_during_a_run_is_not_mixed_up(fake: FakeCache, address: str, tmp_path: Path) -> None:
    stream = stream_of(open_cache(address, local_copy=tmp_path / "copies"))
    shutil.rmtree(tmp_path / "cache.zarr")
    write_cache(tmp_path / "cache.zarr", patients=40, seed=9)
    assert "has changed since this command began" in message(lambda: check_epoch(fake, stream))


def test_caches_of_the_same_name_share_the_folder(fake: FakeCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "cache.zarr", patients=6, seed=3)
    for _ in range(2):
        for each in (fake, other):
            check_epoch(each, stream_of(open_cache(each.path, local_copy=tmp_path / "copies")))
    assert len(list((tmp_path / "copies").iterdir())) == 2

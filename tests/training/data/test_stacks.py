"""Test that a stream with context yields each slice between its neighbours, and decodes each slice only once."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from testkit.fake_cache import FakeCache, write_cache
from training.data import shards
from training.data.cache import open_cache
from training.data.neighbours import Context, find_neighbours
from training.data.stream import Stream
from training.errors import CacheError

SIZE = 16
CONTEXTS = [Context(1, (0, 1, 2)), Context(2, (0, 1, 2)), Context(1, (0,)), Context(2, (0, 2))]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("stacks") / "cache.zarr", patients=5, slices=6, sizes=(SIZE,))


def stacked(fake: FakeCache, line: int, context: Context) -> np.ndarray:
    """Return the stack of one slice by plain indexing."""
    images, stack = fake.images[SIZE], find_neighbours(open_cache(fake.path), context.slices)[line]
    middle = context.slices
    parts = [images[of] if i == middle else images[of][list(context.windows)] for i, of in enumerate(stack)]
    return np.concatenate(parts)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("threads", [0, 2])
def test_each_slice_is_between_its_neighbours(fake: FakeCache, context: Context, shuffle: bool, threads: int) -> None:
    cache = open_cache(fake.path)
    lines = np.arange(1, cache.num_slices, 2)
    seen = []
    for batch in Stream(cache, SIZE, lines, 7, threads, context=context).epoch(1, 2, shuffle=shuffle):
        for line, image in zip(batch.lines.tolist(), batch.images.numpy(), strict=True):
            assert np.array_equal(image, stacked(fake, line, context))
            seen.append(line)
    assert sorted(seen) == lines.tolist()


def test_the_order_is_the_same_as_without_context(fake: FakeCache) -> None:
    cache, lines = open_cache(fake.path), np.arange(30)
    plain, stacks = Stream(cache, SIZE, lines, 8), Stream(cache, SIZE, lines, 8, context=CONTEXTS[0])
    for a, b in zip(plain.epoch(0, 1), stacks.epoch(0, 1), strict=True):
        assert a.lines.tolist() == b.lines.tolist()
        assert np.array_equal(a.images, b.images[:, 3:6])
    assert np.array_equal(plain.stored_bytes, stacks.stored_bytes)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_slice_is_decoded_once_per_batch(fake: FakeCache, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    decompress = shards.DECOMPRESS["blosc"]
    monkeypatch.setitem(shards.DECOMPRESS, "blosc", lambda stored, image: calls.append(decompress(stored, image)))
    cache = open_cache(fake.path)
    stream = Stream(cache, SIZE, np.arange(30), 30, 0, context=context)
    (_,) = stream.epoch(0, 0)
    assert len(calls) == 30


def test_damage_of_a_neighbour_names_the_neighbour(tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr", patients=3, slices=4, sizes=(SIZE,))
    cache = open_cache(fake.path)
    row = int(fake.table["row"][1])
    reader = shards.SliceReader(cache, SIZE, np.array([1]))
    shard = Path(cache.path, cache.array(SIZE).shard_name(row // cache.rows_per_shard))
    content = bytearray(shard.read_bytes())
    content[int(reader._stops[0]) - 10] ^= 255
    shard.write_bytes(content)
    with pytest.raises(CacheError, match=fake.table["sop_instance_uid"][1]):
        list(Stream(cache, SIZE, np.array([0, 8]), 2, 0, context=Context(1, (0,))).epoch(0, 0))


def test_a_stream_with_context_can_be_pickled(fake: FakeCache) -> None:
    stream = pickle.loads(pickle.dumps(Stream(open_cache(fake.path), SIZE, np.arange(4), 4, 0, context=CONTEXTS[2])))
    (batch,) = stream.epoch(0, 0, shuffle=False)
    assert np.array_equal(batch.images[2], stacked(fake, 2, CONTEXTS[2]))

"""Test the map-style dataset in plain DataLoaders, and the stream as an iterable."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from testkit.fake_cache import FakeCache, write_cache
from testkit.tiny_run import SPAWNED
from training.data.cache import Cache, open_cache
from training.data.dataset import SliceDataset
from training.data.stream import Stream
from training.errors import CacheError, ConfigError

LINES = np.array([31, 4, 4, 0, 17, 22, 9, 38])


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("dataset") / "cache.zarr", unlabelled=1)


@pytest.fixture(scope="module")
def cache(fake: FakeCache) -> Cache:
    return open_cache(fake.path)


def test_an_item_is_the_slice_at_its_line(fake: FakeCache, cache: Cache) -> None:
    dataset = SliceDataset(cache, 32, LINES)
    assert len(dataset) == len(LINES)
    for index in (0, 3, -1):
        item, line = dataset[index], LINES[index]
        assert np.array_equal(item["image"].numpy(), fake.images[32][line])
        assert (item["line"].item(), item["z_norm"].item()) == (line, np.float32(fake.table["z_norm"][line]))
        assert np.array_equal(item["label"].numpy(), cache.labels()[line], equal_nan=True)
    for index in (8, -9):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("method", ["fork", SPAWNED], ids=["fork", "anew"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_plain_dataloader_with_workers_gives_each_slice_once(fake: FakeCache, cache: Cache, method: Any) -> None:
    dataset = SliceDataset(cache, 32, np.arange(cache.num_slices))
    dataset[0]  # so that its shards are open when the workers start
    loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=2, multiprocessing_context=method)
    lines = []
    for batch in loader:
        assert np.array_equal(batch["image"].numpy(), fake.images[32][batch["line"].numpy()])
        lines += batch["line"].tolist()
    assert lines != sorted(lines)
    assert sorted(lines) == list(range(cache.num_slices))


def test_transform_gets_each_image_and_a_pickled_dataset_reads_the_same(cache: Cache) -> None:
    dataset = pickle.loads(pickle.dumps(SliceDataset(cache, 32, LINES, transform=torch.Tensor.float)))
    assert dataset[2]["image"].dtype == torch.float32
    assert torch.equal(dataset[2]["image"], SliceDataset(cache, 32, LINES)[2]["image"].float())


def test_context_stacks_the_neighbours(fake: FakeCache, cache: Cache) -> None:
    middle = cache.table.index[cache.table["z_norm"] == 0.5][3]
    (item,) = SliceDataset(cache, 32, np.array([middle]), context=1).__getitems__([0])
    assert np.array_equal(item["image"].numpy(), fake.images[32][middle - 1 : middle + 2].reshape(9, 32, 32))


def test_kept_items_are_never_refilled(fake: FakeCache, cache: Cache) -> None:
    """Keep items, a view of one, and one as a NumPy array; the memory of released ones is reused."""
    dataset = SliceDataset(cache, 32, np.arange(cache.num_slices))
    kept = dataset.__getitems__([1, 2])
    view, array = dataset[3]["image"][1:], dataset[4]["image"].numpy()
    places = {dataset.__getitems__([line, line + 1])[0]["image"].data_ptr() for line in range(10, 30)}
    assert len(places) <= 2
    for item in kept:
        assert np.array_equal(item["image"].numpy(), fake.images[32][item["line"].item()])
    assert np.array_equal(view.numpy(), fake.images[32][3][1:])
    assert np.array_equal(array, fake.images[32][4])


def test_damage_is_reported(tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr")
    dataset = SliceDataset(open_cache(fake.path), 32, np.arange(40))
    for shard in (fake.path / "images").rglob("0"):
        if shard.is_file():
            content = bytearray(shard.read_bytes())
            content[: len(content) // 2] = bytes(len(content) // 2)
            shard.write_bytes(content)
    with pytest.raises(CacheError, match="verify --repair"):
        dataset.__getitems__(list(range(40)))


def test_a_kept_batch_is_never_refilled(fake: FakeCache, cache: Cache) -> None:
    """Keep batches in three ways: in a list, by a view of each, and by a NumPy array of each."""
    stream = Stream(cache, 32, np.arange(cache.num_slices), 8, threads=2)
    kept = list(stream.epoch(0, 0))
    views = [(batch.images[1], batch.lines[1]) for batch in stream.epoch(0, 1)]
    arrays = [(batch.images.numpy()[2:], batch.lines.numpy()[2:]) for batch in stream.epoch(0, 2)]
    for _ in stream.epoch(0, 3):
        pass
    for batch in kept:
        assert np.array_equal(batch.images.numpy(), fake.images[32][batch.lines.numpy()])
    for image, line in views:
        assert np.array_equal(image.numpy(), fake.images[32][line.item()])
    for images, lines in arrays:
        assert np.array_equal(images, fake.images[32][lines])


@pytest.mark.parametrize("threads", [0, 2])
def test_memory_of_released_batches_is_reused(cache: Cache, threads: int) -> None:
    stream = Stream(cache, 32, np.arange(cache.num_slices), 2, threads=threads, ahead=2)
    places = {batch.images.data_ptr() for epoch in range(5) for batch in stream.epoch(0, epoch)}
    assert len(places) <= 8  # of 100 batches; the ring has 5, and a thread that is slow to release may cost one


def test_iterating_a_stream_yields_one_epoch_after_another(cache: Cache) -> None:
    stream = Stream(cache, 32, np.arange(cache.num_slices), 16, seed=3)
    assert len(stream) == 3
    passes = [[batch.lines.tolist() for batch in stream] for _ in range(2)]
    assert passes == [[batch.lines.tolist() for batch in stream.epoch(3, epoch)] for epoch in range(2)]
    stream.set_epoch(0)
    assert [batch.lines.tolist() for batch in DataLoader(stream, batch_size=None)] == passes[0]
    assert len(DataLoader(stream, batch_size=None)) == 3


def test_dataloader_workers_are_rejected(cache: Cache) -> None:
    loader = DataLoader(Stream(cache, 32, np.arange(40), 8), batch_size=None, num_workers=1)
    with pytest.raises(ConfigError, match="num_workers=0"):
        next(iter(loader))


def _take_part(rank: int, path: Path, store: Path, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    cache = open_cache(path)
    stream = Stream(cache, 32, np.arange(40), 6)
    lines = [batch.lines.tolist() for batch in stream]
    assert len(lines) == len(stream) == 4
    with pytest.raises(ConfigError, match="drop_last=True"):
        iter(Stream(cache, 32, np.arange(37), 6))
    answers.put((rank, lines))
    torch.distributed.destroy_process_group()


def test_processes_share_an_epoch_without_a_sampler(fake: FakeCache, cache: Cache, tmp_path: Path) -> None:
    answers = SPAWNED.Queue()
    processes = [
        SPAWNED.Process(target=_take_part, args=(rank, fake.path, tmp_path / "store", answers)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    parts = dict(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    together = [a + b for a, b in zip(parts[0], parts[1], strict=True)]
    assert together == [batch.lines.tolist() for batch in Stream(cache, 32, np.arange(40), 12).epoch(0, 0)]

"""Test how batches of the dataset reach a loop: complete, without a copy, and not refilled while in use."""

import gc
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate

from testkit.fake_cache import FakeCache, write_cache
from training.data.cache import Cache, open_cache
from training.data.dataset import SliceDataset
from training.data.handover import MOST_SLOTS
from training.data.memory import KEPT

SIZE = 4  # slices in a batch
METHOD = "fork" if sys.platform == "linux" else "spawn"

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("handover") / "cache.zarr")


@pytest.fixture(scope="module")
def cache(fake: FakeCache) -> Cache:
    return open_cache(fake.path)


@pytest.fixture
def dataset(cache: Cache) -> SliceDataset:
    return SliceDataset(cache, 32, np.arange(cache.num_slices))


def _loader(dataset: Any, workers: int, **options: Any) -> DataLoader:
    return DataLoader(
        dataset, SIZE, shuffle=True, num_workers=workers, multiprocessing_context=METHOD if workers else None, **options
    )


def _differences(fake: FakeCache, batches: list[dict[str, torch.Tensor]]) -> int:
    return sum(not np.array_equal(each["image"].numpy(), fake.images[32][each["line"].numpy()]) for each in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_kept_batches_are_never_refilled(fake: FakeCache, dataset: SliceDataset, workers: int) -> None:
    """Keep a whole epoch, which is more than the reusable memory, and part of each batch as a view and in NumPy."""
    kept = list(_loader(dataset, workers))
    assert len(kept) > max(KEPT, MOST_SLOTS)
    assert {type(batch) for batch in kept} == {dict}
    views = [(batch["image"][1, 1:], batch["line"][1].item()) for batch in _loader(dataset, workers)]
    arrays = [(batch["image"].numpy()[2:], batch["line"].numpy()[2:]) for batch in _loader(dataset, workers)]
    for _ in _loader(dataset, workers):
        pass
    assert _differences(fake, kept) == 0
    for view, line in views:
        assert np.array_equal(view.numpy(), fake.images[32][line][1:])
    for images, lines in arrays:
        assert np.array_equal(images, fake.images[32][lines])


@pytest.mark.parametrize(("workers", "most"), [(0, KEPT), (2, 2 * MOST_SLOTS)])
def test_memory_of_released_batches_is_reused(dataset: SliceDataset, workers: int, most: int) -> None:
    loader = _loader(Subset(dataset, [*range(len(dataset))] * 5), workers)
    places = [batch["image"].data_ptr() for batch in loader]
    assert len(set(places)) <= most < len(places) // 2


def test_a_custom_collate_in_a_worker_may_return_only_images(fake: FakeCache, dataset: SliceDataset) -> None:
    kept = list(_loader(dataset, 1, collate_fn=_images_and_lines))
    assert len(kept) > MOST_SLOTS
    assert _differences(fake, [{"image": images, "line": lines} for images, lines in kept]) == 0


def _images_and_lines(items: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = default_collate(items)
    return batch["image"], batch["line"]


@pytest.mark.parametrize("workers", [0, 1])
def test_items_can_be_read_one_by_one_without_batches(fake: FakeCache, dataset: SliceDataset, workers: int) -> None:
    loader = DataLoader(dataset, None, num_workers=workers, multiprocessing_context=METHOD if workers else None)
    kept = list(loader)
    assert len(kept) == len(dataset)
    for item in kept:
        assert np.array_equal(item["image"].numpy(), fake.images[32][item["line"].item()])


@pytest.mark.parametrize("workers", [0, 1])
def test_items_of_several_datasets_are_collated_as_usual(fake: FakeCache, cache: Cache, workers: int) -> None:
    halves = ConcatDataset([SliceDataset(cache, 32, lines) for lines in np.array_split(np.arange(40), 2)])
    kept = list(_loader(halves, workers))
    assert sum(len(batch["line"]) for batch in kept) == 40
    assert _differences(fake, kept) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_results_of_a_transform_are_collated(fake: FakeCache, cache: Cache, workers: int) -> None:
    dataset = SliceDataset(cache, 32, np.arange(40), transform=_named)
    for batch in _loader(dataset, workers):
        lines = batch["line"].numpy()
        assert np.array_equal(batch["image"]["flipped"].numpy(), fake.images[32][lines][..., ::-1])
        assert batch["image"]["name"] == ["slice"] * len(lines)


def _named(image: torch.Tensor) -> dict[str, Any]:
    return {"flipped": image.flip(-1), "name": "slice"}


def test_a_batch_is_a_sequence_of_its_items(dataset: SliceDataset) -> None:
    items = dataset.__getitems__([3, 1, 2])
    assert [item["line"].item() for item in items] == [3, 1, 2]
    assert [item["line"].item() for item in items[1:]] == [1, 2]
    assert items[-1]["line"].item() == 2
    assert len(items) == 3
    with pytest.raises(IndexError):
        items[3]
    whole, one_by_one = default_collate(items), default_collate(list(items))
    assert whole.keys() == one_by_one.keys() == items[0].keys()
    for name, values in whole.items():
        assert values.dtype == one_by_one[name].dtype
        assert torch.equal(values, one_by_one[name])


def test_memory_of_workers_is_released_with_the_dataset(cache: Cache) -> None:
    dataset = SliceDataset(cache, 32, np.arange(40))
    for _ in range(2):  # each epoch starts new workers
        deque(_loader(dataset, 1), maxlen=0)
        assert 0 < len(list(_shared_images(dataset))) <= MOST_SLOTS
    storages = [each.untyped_storage()._weak_ref() for each in _shared_images(dataset)]
    del dataset
    gc.collect()
    assert all(torch.UntypedStorage._expired(each) for each in storages)


def _shared_images(dataset: SliceDataset) -> Iterator[torch.Tensor]:
    for _, slots in dataset._receiver._slots.values():
        yield from slots.values()

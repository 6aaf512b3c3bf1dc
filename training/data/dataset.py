"""A map-style dataset of the slices of a cache, for use with any DataLoader."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from training.data.cache import Cache
from training.data.handover import Receiver, Sender, wrap_for_sending
from training.data.memory import Ring
from training.data.neighbours import Context
from training.data.shards import SliceReader
from training.data.stacks import StackReader


class Item(dict[str, Any]):
    """One slice with its values; a separate type, so that `default_collate` recognises a batch of them."""


class Items(Sequence[Item]):
    """The items of a batch, which torch's `default_collate` collates without copying them.

    Args:
        columns: name -> B values, a tensor if they are contiguous.
        wrap: applied to the batch, as a dict, before it leaves a worker.
    """

    def __init__(
        self, columns: dict[str, Tensor | list[Any]], wrap: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self.columns, self.wrap = columns, wrap

    def __len__(self) -> int:
        return len(self.columns["line"])

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        return Item({name: values[index] for name, values in self.columns.items()})

    def __iter__(self) -> Iterator[Item]:
        for values in zip(*self.columns.values(), strict=True):
            yield Item(zip(self.columns, values, strict=True))


def collate_items(batch: Sequence[Item], *, collate_fn_map: Any = None) -> dict[str, Any]:
    """Collate B items to one dict, as `default_collate` does with other dicts, but do not copy contiguous values."""
    if isinstance(batch, Items):
        return batch.wrap(
            {
                name: values if isinstance(values, Tensor) else collate(values, collate_fn_map=collate_fn_map)
                for name, values in batch.columns.items()
            }
        )
    return {name: collate([item[name] for item in batch], collate_fn_map=collate_fn_map) for name in batch[0]}


# The extension point in the documentation of torch's `collate`.
default_collate_fn_map[Item] = collate_items


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices of a cache as a map-style dataset. It can be pickled, forked and spawned, and read by several threads.

    An item is a dict: `image` (C, S, S) uint8 grey levels, or the result of `transform`; `z_norm` () float32 in
    [0, 1]; `label` (K,) float32, 0 or 1, NaN if the slice has none; `line` () int64, its position in `cache.table`.
    A DataLoader with a batch size requests all items of a batch together, so they are decoded in one call, and its
    default `collate_fn` passes them on without copying. The checksum of each slice is verified.

    Args:
        cache: as returned by `open_cache`.
        size: image side S in pixels, one of `cache.sizes`.
        lines: (n,) positions in `cache.table`; item i is the slice lines[i].
        context: N, the number of neighbouring slices to include on each side, from foot to head, with all windows of
            one slice before those of the next: an image then has (2 N + 1) C channels.
        transform: a function from one (C, S, S) uint8 image to anything that the DataLoader can collate.

    Raises:
        CacheError: if the size was not built, a slice or its shard is missing, or neighbours are requested but
            unknown; on reading, if a slice is damaged.
    """

    def __init__(
        self,
        cache: Cache,
        size: int,
        lines: np.ndarray,
        context: int = 0,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        lines = np.asarray(lines, np.int64)
        stack = Context(context, tuple(range(len(cache.windows))))
        self._reader: SliceReader | StackReader = (
            StackReader(cache, size, lines, stack) if context else SliceReader(cache, size, lines)
        )
        self._z_norm = torch.from_numpy(cache.table["z_norm"].to_numpy(np.float32)[lines])
        labels = cache.labels() if cache.classes else np.empty((cache.num_slices, 0), np.float32)
        self._labels = torch.from_numpy(labels[lines])
        self._lines = torch.from_numpy(lines)
        self._transform = transform
        self._ring = Ring(self._reader.shape)
        self._receiver = Receiver(uuid4().hex)
        self._sender: Sender | None = None

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Item:
        """Return one item; a negative index counts from the end."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Items:
        """Return the items of a batch, decoded together; their memory is reused once they are all released."""
        which = np.asarray(indices, np.int64)
        if len(which) and not -len(self) <= which.min() <= which.max() < len(self):
            raise IndexError(f"index out of range: the dataset has {len(self)} slices")
        which = which % max(1, len(self))
        images = self._read(which)
        shown = images if self._transform is None else [self._transform(image) for image in images]
        facts = {"z_norm": self._z_norm[which], "label": self._labels[which], "line": self._lines[which]}
        return Items({"image": shown, **facts}, self._wrap)

    def _wrap(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._transform is not None or get_worker_info() is None:
            return batch
        self._sender = self._sender or Sender()
        return wrap_for_sending(batch, self._receiver.name, self._sender)

    def _read(self, which: np.ndarray) -> Tensor:
        memory = self._ring.take(len(which))
        array = memory.array()
        self._reader.read(which, array.reshape(len(array), -1))
        images = memory.tensor()[: len(which)]
        self._ring.give_back(memory)
        return images

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_ring": Ring(self._reader.shape), "_sender": None}

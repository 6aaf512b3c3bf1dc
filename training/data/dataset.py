"""Give the slices of a cache one by one, in any order, to whoever has a DataLoader of their own."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.data.cache import Cache
from training.data.neighbours import Context
from training.data.shards import SliceReader
from training.data.stacks import StackReader

KNOWN_HERE = 2  # references to an array that a function alone has: its variable, and the question itself


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices of a cache as a map-style dataset. It may be pickled, forked and spawned, and read by threads.

    An item is a dict: `image` (C, S, S) uint8 grey levels, or what `transform` makes of it; `z_norm` () float32 in
    [0, 1]; `label` (K,) float32, 0 or 1, NaN where the slice has none; `line` () int64, its position in `cache.table`.
    A DataLoader with a batch size asks for all items of a batch at once, so the whole batch is decoded in one go;
    the checksum of each slice is compared.

    Args:
        lines: (n,) positions in `cache.table`; item i is the slice lines[i].
        context: N slices on each side to show with it, from foot to head, all windows of one after those of another:
            an image has (2 N + 1) C channels then.
        transform: from one (C, S, S) uint8 image to anything that the DataLoader can collate.

    Raises:
        CacheError: the size is not built, a slice or its shard is missing, or neighbours are wanted and unknown; on
            reading, a slice is damaged.
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
        self._spare: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one item; a negative index counts from the end."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the items of a batch, decoded together. Their memory is filled again once all of them are dropped."""
        which = np.asarray(indices, np.int64)
        if len(which) and not -len(self) <= which.min() <= which.max() < len(self):
            raise IndexError(f"the dataset has {len(self)} slices")
        which = which % max(1, len(self))
        memory = self._take_memory(len(which))
        self._reader.read(which, memory.reshape(len(memory), -1))
        images = torch.from_numpy(memory)[: len(which)]
        self._spare.append(memory)
        shown = images if self._transform is None else [self._transform(image) for image in images]
        facts = (shown, self._z_norm[which], self._labels[which], self._lines[which])
        return [
            {"image": image, "z_norm": z_norm, "label": label, "line": line}
            for image, z_norm, label, line in zip(*facts, strict=True)
        ]

    def _take_memory(self, count: int) -> np.ndarray:
        """Return memory for so many images: fresh one costs more in page faults than to decode into it.

        A tensor made of an array holds a reference to it, as does every view of that tensor, so an array that only
        this function knows is nobody's. Threads each take their own.
        """
        try:
            memory = self._spare.pop()
        except IndexError:
            return np.empty((count, *self._reader.shape), np.uint8)
        if sys.getrefcount(memory) > KNOWN_HERE or len(memory) < count:
            return np.empty((count, *self._reader.shape), np.uint8)
        return memory

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_spare": []}

"""Read slices together with their neighbours, as one image with more channels."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import numpy as np

from training.data.cache import Cache
from training.data.neighbours import Context, find_neighbours
from training.data.shards import SliceReader


class StackReader:
    """A `SliceReader` that returns a stack for each slice: the slice and its neighbours, from foot to head.

    A slice is decoded once per `read`, even if several stacks include it.

    Args:
        lines: (n,) positions in `cache.table`; the methods identify a stack by its position in `lines`.

    Raises:
        CacheError: as for `SliceReader` and `find_neighbours`.
    """

    def __init__(self, cache: Cache, size: int, lines: np.ndarray, context: Context) -> None:
        used, stacks = np.unique(find_neighbours(cache, context.slices)[lines], return_inverse=True)
        self._reader = SliceReader(cache, size, used)
        self._stacks = stacks.reshape(len(lines), 2 * context.slices + 1)  # (n, 2N + 1) positions in `used`
        self._middle = context.slices
        channels, height, width = self._reader.shape
        self._pixels = height * width
        shown: list[tuple[int, ...]] = [context.windows] * self._stacks.shape[1]
        shown[self._middle] = tuple(range(channels))
        self._shown = shown
        self._begins = np.cumsum([0, *map(len, shown)]) * self._pixels
        self.shape = (int(self._begins[-1]) // self._pixels, height, width)

    @property
    def stored_bytes(self) -> np.ndarray:
        """Stored size in bytes of each slice without its neighbours, including its checksum, (n,) int64."""
        return self._reader.stored_bytes[self._stacks[:, self._middle]]

    def read(self, which: np.ndarray, out: Iterable[np.ndarray]) -> None:
        """Read stacks `which`, (m,), into m or more writable (channels x S x S,) uint8 arrays.

        Raises:
            CacheError: if a slice is damaged; the message names the slice and its shard. The content of `out` is then
                undefined.
        """
        images = [image for _, image in zip(which, out, strict=False)]
        needed, places = np.unique(self._stacks[which], return_inverse=True)
        places = places.reshape(len(which), -1)
        decoded: list[np.ndarray | None] = [None] * len(needed)
        full = [column for column, windows in enumerate(self._shown) if len(windows) == self._num_windows]
        for column in full:  # decode directly into the batch where a stack shows all windows of the slice
            for image, place in zip(images, places[:, column].tolist(), strict=True):
                if decoded[place] is None:
                    decoded[place] = self._part(image, column)
        elsewhere = iter(np.empty((sum(part is None for part in decoded), self._num_windows * self._pixels), np.uint8))
        slices = [next(elsewhere) if part is None else part for part in decoded]
        self._reader.read(needed, slices)
        for image, stack in zip(images, places.tolist(), strict=True):
            self._copy(image, [slices[place] for place in stack])

    def fetching(self, parts: list[np.ndarray]) -> AbstractContextManager[None]:
        """Copy the shards of stacks in the background; see `SliceReader.fetching`."""
        return self._reader.fetching([self._stacks[part].ravel() for part in parts])

    def will_read(self, which: np.ndarray) -> None:
        """Ask the system to load stacks into memory, without waiting for it."""
        self._reader.will_read(np.unique(self._stacks[which]))

    def wait_for(self, which: np.ndarray) -> None:
        """Wait until stacks are in memory, with the GIL released."""
        self._reader.wait_for(np.unique(self._stacks[which]))

    @property
    def _num_windows(self) -> int:
        return self._reader.shape[0]

    def _part(self, image: np.ndarray, column: int) -> np.ndarray:
        """Return the part of a stack's memory that holds one of its slices."""
        return image[self._begins[column] : self._begins[column + 1]]

    def _copy(self, image: np.ndarray, slices: list[np.ndarray]) -> None:
        """Copy slices to their parts of a stack, except those that were decoded in place."""
        for column, (windows, pixels) in enumerate(zip(self._shown, slices, strict=True)):
            part = self._part(image, column)
            if len(windows) == self._num_windows:
                if not np.may_share_memory(part, pixels):
                    part[:] = pixels
                continue
            for number, window in enumerate(windows):
                begin = window * self._pixels
                part[number * self._pixels : (number + 1) * self._pixels] = pixels[begin : begin + self._pixels]

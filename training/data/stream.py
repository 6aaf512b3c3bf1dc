"""A stream of shuffled batches from shards: their order, memory and threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from training import system
from training.data.batches import Batch, Layout, Slot
from training.data.cache import Cache
from training.data.hashing import splitmix64
from training.data.neighbours import Context
from training.data.shards import SliceReader
from training.data.stacks import StackReader
from training.errors import ConfigError

HINTS_AHEAD = 3  # batches between the prefetch request and the read
COLD_BATCHES = 32  # batches that are prefetched after one that had to wait for the disk


@dataclass(frozen=True)
class Draw:
    """Random numbers that go to the device with each slice of a batch, in the same copy.

    Attributes:
        columns: D, how many each slice has.
        of_batch: a function from the epoch, the number of the batch in it and the slices' keys, (B,) uint64, to the
            numbers, (B, D) float32; it is called from threads.
    """

    columns: int
    of_batch: Callable[[int, int, np.ndarray], np.ndarray]


class Stream(IterableDataset[Batch]):
    """Batches of selected slices of a cache, prefetched by threads, epoch after epoch.

    Each iteration yields the next epoch, or this process's part of it under torch.distributed; `epoch` yields any
    epoch. A stream replaces a DataLoader; to pass it to one, use batch_size=None and num_workers=0.

    Batches are in a ring of memory that is reused once they are released. A batch that is kept, or a view of it, keeps
    its memory, and the ring allocates more.

    Args:
        cache: as returned by `open_cache`.
        size: image side S in pixels, one of `cache.sizes`.
        lines: (n,) positions in `cache.table`.
        batch_size: slices per batch in one process.
        threads: number of threads that read and decode; with 0, each batch is filled on request. The batches do not
            depend on it.
        ahead: batches to prefetch.
        pin: use page-locked memory, from which copies to a GPU are asynchronous.
        context: read each slice together with its neighbours, as one image with more channels.
        draw: further numbers to send to the device with each batch.
        seed: seed of the order, when the stream is iterated.
        shuffle, drop_last: as for `epoch`, when the stream is iterated.

    Raises:
        CacheError: if the size was not built, a slice or its shard is missing, or neighbours are requested but
            unknown.
    """

    def __init__(  # noqa: PLR0913  # options of the public interface
        self,
        cache: Cache,
        size: int,
        lines: np.ndarray,
        batch_size: int,
        threads: int = 1,
        *,
        ahead: int = 4,
        pin: bool = False,
        context: Context | None = None,
        draw: Draw | None = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        lines = np.sort(np.asarray(lines, np.int64))
        labels = cache.labels() if cache.classes else np.empty((cache.num_slices, 0), np.float32)
        z_norm = cache.table["z_norm"].to_numpy(np.float32)
        self._reader: SliceReader | StackReader = (
            SliceReader(cache, size, lines) if context is None else StackReader(cache, size, lines, context)
        )
        self._keys = cache.keys[lines]
        self._facts = (z_norm[lines], labels[lines], self._keys.view(np.int64), lines)
        self._batch_size, self._threads, self._pin, self._draw = batch_size, threads, pin, draw
        self._layout = Layout(batch_size, self._reader.shape, labels.shape[1], draw.columns if draw else 0)
        # New threads use GPU 0, on which page-locked memory would create another context for every process.
        self._device = torch.cuda.current_device() if pin else None
        self._ahead = ahead if threads else 0
        self._free: deque[Slot] = deque()
        self._cold_until = 0
        self._seed, self._shuffle, self._drop_last = seed, shuffle, drop_last
        self._next_epoch = 0

    def __len__(self) -> int:
        """Return the number of batches in one iteration, which is the same in each process of torch.distributed."""
        _, world = _place()
        return self.num_batches(world, drop_last=self._drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's batches of the next epoch: 0 at first, or the one given to `set_epoch`.

        Raises:
            ConfigError: in a DataLoader worker, or if the last batch has too few slices for all processes.
        """
        if get_worker_info() is not None:
            raise ConfigError("Stream reads with its own threads; give the DataLoader num_workers=0")
        rank, world = _place()
        rest = len(self._keys) % (self._batch_size * world)
        if 0 < rest < world and not self._drop_last:
            raise ConfigError(
                f"Stream: the epoch's last {rest} slices are too few for all {world} processes; give drop_last=True"
            )
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(self._seed, epoch, rank=rank, world=world, shuffle=self._shuffle, drop_last=self._drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; later iterations count on from it."""
        self._next_epoch = epoch

    @property
    def num_slices(self) -> int:
        """Number of slices read in one epoch, by all processes together."""
        return len(self._keys)

    @property
    def stored_bytes(self) -> np.ndarray:
        """Size of each slice on disk in bytes, (n,) int64."""
        return self._reader.stored_bytes

    def num_batches(self, world: int = 1, *, drop_last: bool = False) -> int:
        """Return the number of batches in an epoch, which is the same for each of `world` processes."""
        full, rest = divmod(len(self._keys), self._batch_size * world)
        return full + (rest > 0 and not drop_last)

    def epoch(  # noqa: PLR0913  # options of the public interface
        self,
        seed: int,
        epoch: int,
        *,
        skip_batches: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        batches: int | None = None,
    ) -> Generator[Batch, None, None]:
        """Yield the batches of one epoch.

        The order is the `permutation` of the slices' keys, or that of the table without `shuffle`. It is divided into
        global batches of world x batch_size slices, and each of these into one part per process, so that the global
        batches depend only on their size. In the last one, unless it is dropped, parts are shorter and may be empty.

        Args:
            seed: seed of the order.
            epoch: number of the epoch, from 0.
            skip_batches: number of batches to skip without reading them, to resume within an epoch.
            rank, world: number of this process, and of all processes.
            shuffle: whether to shuffle the slices.
            drop_last: whether to drop a last batch that is not full.
            batches: divide the epoch evenly into this many global batches instead, whose sizes differ by at most one;
                at least `num_batches`.

        Raises:
            CacheError: if a slice is damaged; the message names the slice and its shard.
        """
        order = permutation(self._keys, seed, epoch) if shuffle else np.arange(len(self._keys))
        if batches is None:
            edges = np.minimum(
                np.arange(self.num_batches(world, drop_last=drop_last) + 1) * self._batch_size * world, len(order)
            )
        else:
            edges = np.arange(batches + 1) * len(order) // batches
        parts = [np.array_split(order[first:stop], world)[rank] for first, stop in pairwise(edges)]
        draw = None if self._draw is None else partial(self._draw.of_batch, epoch)
        return self._batches(parts, skip_batches, draw)

    def _batches(
        self, parts: list[np.ndarray], first: int, draw: Callable[[int, np.ndarray], np.ndarray] | None
    ) -> Generator[Batch, None, None]:
        filling: deque[tuple[Slot, Callable[[], Batch]]] = deque()
        numbers = iter(range(first, len(parts)))
        self._cold_until = 0
        pool = ThreadPoolExecutor(max(1, self._threads), "stream", _use_device, (self._device,))
        try:
            with self._reader.fetching(parts[first:]):
                while True:
                    for number in islice(numbers, self._ahead + 1 - len(filling)):
                        slot = self._take_slot()
                        fill = partial(self._fill, slot, parts, number, draw)
                        filling.append((slot, pool.submit(fill).result if self._threads else fill))
                    if not filling:
                        return
                    yield filling[0][1]()
                    self._free.append(filling.popleft()[0])
        finally:
            pool.shutdown(cancel_futures=True)  # waits for running fills, since they write into slots
            self._free.extend(slot for slot, _ in filling)

    def _take_slot(self) -> Slot:
        # The slot returned last may still be in use by a copy to the GPU, so one more stays in the ring. Slots that are
        # still referenced now belong to their holder.
        while len(self._free) > 1:
            slot = self._free.popleft()
            if not slot.is_held():
                return slot
        return Slot(self._layout, pin=self._pin)

    def _fill(
        self,
        slot: Slot,
        parts: list[np.ndarray],
        number: int,
        draw: Callable[[int, np.ndarray], np.ndarray] | None,
    ) -> Batch:
        slot.guard.wait()
        which = parts[number]
        if number < self._cold_until:
            self._request(parts[number + HINTS_AHEAD : number + HINTS_AHEAD + 1])
            self._reader.wait_for(which)
        faults = system.disk_reads()
        self._reader.read(which, slot.images())
        if system.disk_reads() > faults:
            self._begin_requests(parts, number + 1)
        batch = slot.batch(len(which))
        for tensor, fact in zip((batch.z_norm, batch.labels, batch.keys, batch.lines), self._facts, strict=True):
            np.take(fact, which, axis=0, out=tensor.numpy(), mode="clip")
        if draw is not None:
            batch.drawn.numpy()[:] = draw(number, self._keys[which])
        return batch

    def _begin_requests(self, parts: list[np.ndarray], number: int) -> None:
        """Start asking the system to read ahead, from batch `number`.

        If everything is in memory, the requests would cost a tenth of the throughput, so they start only once a batch
        has had to wait for the disk, and stop after `COLD_BATCHES` batches.
        """
        self._cold_until = number + COLD_BATCHES
        self._request(parts[number : number + HINTS_AHEAD])

    def _request(self, parts: list[np.ndarray]) -> None:
        for which in parts:
            self._reader.will_read(which)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_free": deque()}


def _use_device(number: int | None) -> None:
    if number is not None:
        torch.cuda.set_device(number)


def _place() -> tuple[int, int]:
    """Return this process's rank and the number of processes in torch.distributed; 0 and 1 without it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def permutation(keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the slices in an epoch, (n,) int64 positions in `keys`, sorted by a hash of key, seed, epoch.

    The resulting sequence of keys does not depend on the order of `keys`, (n,) uint64, if all are different.
    """
    salt = splitmix64(splitmix64(np.array([seed], np.uint64)) + np.uint64(epoch))
    return np.argsort(splitmix64(keys ^ salt), kind="stable")

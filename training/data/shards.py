"""Read single slices from shards: find them, check them, and decode them into existing arrays."""

import math
import mmap
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from training import system
from training.data.arrays import CHECKSUM_BYTES
from training.data.cache import Cache
from training.data.folder import REPAIR
from training.data.mirror import REQUESTS
from training.errors import CacheError

ABSENT = 0xFFFF_FFFF_FFFF_FFFF  # Zarr v3, sharding codec: the index entry of an inner chunk that is not stored
# The CRC-32C of any bytes followed by their own CRC-32C, little-endian.
# Source: RFC 9260, appendix A, gives the polynomial and the inversions from which it follows.
CRC32C_OF_INTACT = 0x48674BC7
DESCRIPTORS_LEFT = 256  # for the rest of the process
# In the 16-byte header of a blosc chunk: decompressed size, block size, stored size.
# Source: c-blosc, README_CHUNK_FORMAT.rst.
BLOSC_SIZES = struct.Struct("<4xIII")


class SliceReader:
    """Decodes slices of one image array, in any order; threads may share it, and it can be pickled and forked.

    The shard indices are read once, on construction. Reading a slice then does not go through Zarr: its stored bytes
    are a range of a memory-mapped shard, which is decompressed straight into the output, and their CRC-32C is verified
    before `read` returns.

    Args:
        lines: (n,) positions in `cache.table`; the methods identify a slice by its position in `lines`.

    Raises:
        CacheError: if the size was not built, a shard is missing or its index damaged, or a slice is not in its shard.
    """

    def __init__(self, cache: Cache, size: int, lines: np.ndarray) -> None:
        self._array = cache.array(size)
        self._names = cache.table[["sop_instance_uid", "frame"]].iloc[lines]
        rows = cache.table["row"].to_numpy()[lines]
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._array.shape[0]:
            raise CacheError(f"{cache.path}: the table refers to rows that {self._array.name} does not have; {REPAIR}")
        self._shards = rows // self._array.rows_per_shard
        self._starts, self._stops = self._find(rows % self._array.rows_per_shard)
        self._begin()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S) of one slice, uint8."""
        return self._array.shape[1:]

    @property
    def stored_bytes(self) -> np.ndarray:
        """Stored size of each slice in bytes, including its checksum, (n,) int64."""
        return self._stops - self._starts

    def read(self, which: np.ndarray, out: Iterable[np.ndarray]) -> None:
        """Decode slices `which`, (m,), into m or more writable (C x S x S,) uint8 arrays.

        Raises:
            ValueError: if an array does not have this size.
            CacheError: if a slice is damaged; the message names the slice and its shard. The content of `out` is then
                undefined.
        """
        checksum, decompress = google_crc32c.value, DECOMPRESS[self._array.compressor]
        opened, done = self._opened, 0
        try:
            # Each microsecond in this loop costs 2 % of the throughput.
            for (shard, start, stop), destination in zip(self._places(which), out, strict=False):
                _, content = opened[shard] or self._open(shard)
                stored = content[start:stop]
                # Decompress first, which hides the memory latency: a tenth faster than waiting for it in the checksum.
                decompress(stored[:-CHECKSUM_BYTES], destination)
                if checksum(stored) != CRC32C_OF_INTACT:
                    raise ValueError("its checksum does not match")
                done += 1
        except (ValueError, RuntimeError, OSError) as error:
            if destination.nbytes != (wanted := math.prod(self.shape)):
                raise ValueError(
                    f"out: arrays of {destination.nbytes} bytes, but a slice {self.shape} has {wanted}"
                ) from error
            files = self._array.files
            raise self._damage_error(which[done], error, files.where, files.remedy) from error

    def fetching(self, parts: list[np.ndarray]) -> AbstractContextManager[None]:
        """Copy the shards of the next slices, given in (m,) parts, to local disk in the background.

        This does nothing unless the cache has local copies. `read` waits for a shard that has not been copied yet.
        """
        return self._array.files.fetching(self._shards_due(parts), self._array.index_bytes)

    def will_read(self, which: np.ndarray) -> None:
        """Ask the system to load slices into memory, without waiting for it."""
        for shard, start, stop in self._places(which):
            mapped, _ = self._open(shard)
            first = start - start % mmap.PAGESIZE
            system.will_need(mapped, first, stop - first)

    def wait_for(self, which: np.ndarray) -> None:
        """Wait until slices are in memory, with the GIL released.

        `read` would wait as well, but in the middle of a checksum, which holds the GIL and so blocks all threads.
        """
        page = np.empty(mmap.PAGESIZE, np.uint8)
        for shard, start, stop in self._places(which):
            _, content = self._open(shard)
            last = content[max(start, stop - mmap.PAGESIZE) : stop]
            page[: len(last)] = last  # numpy releases the GIL to copy more than 500 items

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_opened", "_oldest", "_opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _begin(self) -> None:
        """Set up this process, with no shard open."""
        self._opened: list[tuple[mmap.mmap, np.ndarray] | None] = [None] * self._array.shards
        self._oldest: deque[int] = deque()
        self._opening = threading.Lock()
        self._most_open = _allow_descriptors(self._array.shards)
        # Otherwise numcodecs runs calls from the main thread on its own thread pool.
        blosc.use_threads = False

    def _places(self, which: np.ndarray) -> Iterable[tuple[int, int, int]]:
        return zip(*(part[which].tolist() for part in (self._shards, self._starts, self._stops)), strict=True)

    def _open(self, shard: int) -> tuple[mmap.mmap, np.ndarray]:
        """Return a shard's bytes, mapping it if necessary; the one mapped first is evicted to make room."""
        if (opened := self._opened[shard]) is not None:
            return opened
        file = self._array.files.fetch(self._array.shard_name(shard), self._array.index_bytes)
        with self._opening:
            opened = self._opened[shard]
            if opened is None:
                opened = self._opened[shard] = _map(file, self._array.files.remedy)
                self._oldest.append(shard)
                if len(self._oldest) > self._most_open:
                    # It stays mapped until all threads that are still reading it have released it.
                    self._opened[self._oldest.popleft()] = None
        return opened

    def _shards_due(self, parts: list[np.ndarray]) -> Iterator[str]:
        """Yield the shards of slices in the order in which they are needed."""
        if parts:
            shards, first = np.unique(self._shards[np.concatenate(parts)], return_index=True)
            yield from (self._array.shard_name(shard) for shard in shards[np.argsort(first)])

    def _find(self, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the start and end offsets of each slice's stored bytes in its shard, both (n,) int64.

        Args:
            inside: (n,) position of each slice in its shard.
        """
        shards, position = np.unique(self._shards, return_inverse=True)
        with ThreadPoolExecutor(REQUESTS) as readers:
            indices = np.array(list(readers.map(self._read_index, shards.tolist())), np.uint64)
        entries = indices.reshape(-1, self._array.rows_per_shard, 2)[position, inside]
        if len(absent := np.flatnonzero(entries[:, 0] == ABSENT)):
            raise self._damage_error(absent[0], "it is not in the shard", self._array.files.origin, REPAIR)
        starts, sizes = entries.astype(np.int64).T
        return starts, starts + sizes

    def _read_index(self, shard: int) -> np.ndarray:
        """Return a shard's index, (rows_per_shard, 2) uint64: offset and size in bytes of each inner chunk."""
        files, name = self._array.files, self._array.shard_name(shard)
        stored = files.tail(name, self._array.index_bytes)
        if google_crc32c.value(stored) != CRC32C_OF_INTACT:
            raise CacheError(f"{files.origin(name)}: the shard's index is damaged or truncated; {REPAIR}")
        return np.frombuffer(stored[:-CHECKSUM_BYTES], "<u8").reshape(-1, 2)

    def _damage_error(self, which: int, reason: object, where: Callable[[str], object], remedy: str) -> CacheError:
        uid, frame = self._names.iloc[which]
        file = where(self._array.shard_name(self._shards[which]))
        return CacheError(f"{file}: slice {uid} frame {frame} cannot be read: {reason}; {remedy}")


def _decompress_blosc(stored: np.ndarray, image: np.ndarray) -> None:
    """Decompress a chunk that may be damaged: blosc checks all lengths in a chunk except the chunk's own sizes."""
    if len(stored) <= BLOSC_SIZES.size:
        raise ValueError("it is truncated")
    size, _, stored_size = BLOSC_SIZES.unpack_from(stored.data)
    if size != len(image) or stored_size != len(stored):
        raise ValueError("its header is invalid")
    blosc.decompress(stored, image)


DECOMPRESS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "blosc": _decompress_blosc,
    "zstd": zstd.decompress,
}


def _map(file: Path, remedy: str) -> tuple[mmap.mmap, np.ndarray]:
    try:
        with system.open_file(file) as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CacheError(f"{file}: the shard cannot be read ({error}); {remedy}") from error
    return mapped, np.frombuffer(mapped, np.uint8)


def _allow_descriptors(shards: int) -> int:
    """Raise the limit on descriptors, one for each mapped shard, and return how many shards may be open."""
    return max(1, min(shards, system.allow_descriptors(shards) - DESCRIPTORS_LEFT))

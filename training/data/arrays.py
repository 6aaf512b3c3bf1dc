"""Open a commit's arrays with zarr-python, and describe how an image array is stored."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from training.data.commit import ArrayPath
from training.data.folder import REPAIR, Folder
from training.data.mirror import REQUESTS, Mirror
from training.errors import CacheError
from training.system import open_file, read_whole

CHECKSUM_BYTES = 4
INDEX_ENTRY_BYTES = 16
COMPRESSORS = {"BloscCodec": "blosc", "ZstdCodec": "zstd"}


@dataclass(frozen=True, slots=True)
class ImageArray:
    """One image array: everything needed to find and decode a slice in it.

    Attributes:
        files: of the cache.
        name: of the array, which is its folder in the cache.
        shape: (rows, C, S, S), uint8.
        rows_per_shard: slices in one shard, which is one file.
        compressor: Zarr v3 name of the inner chunks' compressor, which is followed by a crc32c.
    """

    files: Folder | Mirror
    name: str
    shape: tuple[int, int, int, int]
    rows_per_shard: int
    compressor: str

    @property
    def shards(self) -> int:
        """Number of shards, including those that no longer exist."""
        return -(-self.shape[0] // self.rows_per_shard)

    @property
    def index_bytes(self) -> int:
        """Length of the index at the end of a shard."""
        return index_bytes(self.rows_per_shard)

    def shard_name(self, shard: int) -> str:
        """Return the file name of a shard, in the default chunk key encoding of Zarr v3."""
        return f"{self.name}/c/{shard}/0/0/0"


class CommitStore(Store):
    """A commit as a read-only Zarr store: metadata from the commit, shards from the cache's folder or its copies.

    Args:
        documents: an array's name -> its zarr.json.
        tail_bytes: an array's name -> number of bytes at the end of its files that identify their content; see
            `Mirror.fetch`.
        live: shards that the commit's table refers to. If one is missing, that is an error: zarr would fill it with
            zeros, which are black images.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(
        self,
        files: Folder | Mirror,
        documents: Mapping[ArrayPath, Any],
        tail_bytes: Mapping[ArrayPath, int],
        live: frozenset[int],
    ) -> None:
        super().__init__(read_only=True)
        self._files, self._live = files, live
        self._documents = {str(path): document for path, document in documents.items()}
        self._tail_bytes = {str(path): length for path, length in tail_bytes.items()}

    async def get(self, key: str, prototype: Any = None, byte_range: ByteRequest | None = None) -> Any:
        content = await asyncio.to_thread(self._read, key, byte_range)
        return None if content is None else (prototype or default_buffer_prototype()).buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: Any, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Any]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await self.get(key) is not None

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        folder, _, last = key.rpartition("/")
        if last == "zarr.json":
            return json.dumps(self._documents[folder]).encode() if folder in self._documents else None
        name, _, place = key.partition("/c/")
        if name not in self._tail_bytes:
            return None
        is_live = int(place.partition("/")[0]) in self._live
        if not is_live and not self._files.exists(key):
            return None
        try:
            return _part(self._files.fetch(key, self._tail_bytes[name]), byte_range)
        except OSError as error:
            raise CacheError(f"{self._files.where(key)}: cannot be read ({error.strerror}); {REPAIR}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CommitStore) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"CommitStore({self._files.address!r})"

    async def set(self, key: str, value: Any) -> None:
        raise PermissionError("a cache is read-only here; only pipeline build writes it")

    async def delete(self, key: str) -> None:
        raise PermissionError("a cache is read-only here; only pipeline build writes it")

    async def list(self) -> AsyncIterator[str]:  # type: ignore[override]
        for name in self._documents:
            yield f"{name}/zarr.json"

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        under = f"{prefix.rstrip('/')}/" if prefix else ""
        for entry in sorted(
            {name[len(under) :].partition("/")[0] for name in self._documents if name[: len(under)] == under}
        ):
            yield entry


def index_bytes(rows_per_shard: int) -> int:
    """Return the length of the index at the end of a shard of `rows_per_shard` slices."""
    return rows_per_shard * INDEX_ENTRY_BYTES + CHECKSUM_BYTES


def open_array(store: CommitStore, files: Folder | Mirror, name: str) -> Any:
    """Open one array of a commit with zarr-python, read-only.

    Raises:
        CacheError: if its metadata in the commit are missing or invalid.
    """
    try:
        return zarr.open_array(store, path=name, mode="r", zarr_format=3)
    except Exception as error:  # zarr raises a different error for each field of an array's metadata
        raise _format_error(files, name) from error


def image_array(store: CommitStore, files: Folder | Mirror, name: str) -> ImageArray:
    """Open an image array and check that it is stored as the format requires.

    Raises:
        CacheError: if it is not.
    """
    array = open_array(store, files, name)
    shape, codecs = array.shape, array.metadata.codecs
    sharding = codecs[0]
    fits = (
        len(codecs) == 1
        and isinstance(sharding, ShardingCodec)
        and array.dtype == np.uint8
        and len(shape) == 4
        and shape[2] == shape[3]
        and array.shards[1:] == shape[1:]
        and array.chunks == (1, *shape[1:])
        and _names(sharding.index_codecs) == ["BytesCodec", "Crc32cCodec"]
        and _is_little(sharding.index_codecs[0])
        and getattr(sharding.index_location, "value", sharding.index_location) == "end"
        and len(sharding.codecs) == 3
        and isinstance(sharding.codecs[0], BytesCodec)
        and type(sharding.codecs[1]).__name__ in COMPRESSORS
        and isinstance(sharding.codecs[2], Crc32cCodec)
    )
    if not fits:
        raise _format_error(files, name)
    return ImageArray(files, name, shape, array.shards[0], COMPRESSORS[type(sharding.codecs[1]).__name__])


def read_rows(array: Any, files: Folder | Mirror, rows: np.ndarray) -> np.ndarray:
    """Read rows (n,), in any order, of an array whose chunks are single files, and check them; return (n, ...).

    Raises:
        CacheError: if a chunk is damaged or missing; the message names its file.
    """
    per_chunk = array.chunks[0]
    chunks, position = np.unique(rows // per_chunk, return_inverse=True)

    def read(chunk: int) -> np.ndarray:
        try:
            return array[chunk * per_chunk : (chunk + 1) * per_chunk]
        except (ValueError, RuntimeError) as error:
            file = files.where("/".join([array.path, "c", str(chunk), *["0"] * (array.ndim - 1)]))
            raise CacheError(f"{file}: damaged ({error}); {files.remedy}") from error

    with ThreadPoolExecutor(REQUESTS) as readers:
        stored = list(readers.map(read, chunks.tolist()))
    return np.array(stored, array.dtype).reshape(-1, *array.shape[1:])[position * per_chunk + rows % per_chunk]


def _part(file: Path, byte_range: ByteRequest | None) -> bytes:
    if byte_range is None:
        return read_whole(file)
    with open_file(file) as opened:
        if isinstance(byte_range, RangeByteRequest):
            opened.seek(byte_range.start)
            return opened.read(byte_range.end - byte_range.start)
        if isinstance(byte_range, OffsetByteRequest):
            opened.seek(byte_range.offset)
        elif isinstance(byte_range, SuffixByteRequest):
            opened.seek(max(0, opened.seek(0, 2) - byte_range.suffix))
        return opened.read()


def _names(codecs: Iterable[Any]) -> list[str]:
    return [type(codec).__name__ for codec in codecs]


def _is_little(codec: Any) -> bool:
    return getattr(codec.endian, "value", codec.endian) == "little"


def _format_error(files: Folder | Mirror, name: str) -> CacheError:
    return CacheError(f"{files.origin(name)}: the array is not stored as the cache format requires; {REPAIR}")

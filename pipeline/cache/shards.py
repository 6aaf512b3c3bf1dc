"""Encode and decode shard files of the Zarr v3 sharding codec, and write them as a stream."""

import contextlib
import functools
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import google_crc32c
import numcodecs.blosc
import numpy as np
import xxhash
from numcodecs.zstd import Zstd

from pipeline.cache.documents import StoredArray
from pipeline.compiled import compiled_or_plain
from pipeline.system import sync_data

# numcodecs starts its own threads for large buffers, but every core already has a worker.
numcodecs.blosc.use_threads = False

MISSING = 2**64 - 1
# Chunks are compressed into one buffer and written to the file in batches of about this size.
WRITE_BYTES = 1 << 20


_Encoder = Callable[[np.ndarray, np.ndarray, int], int]


@functools.cache
def _lz4_encoder() -> _Encoder:
    plain: _Encoder = _blosc_lz4
    return compiled_or_plain("LZ4 encoder", _compiled_lz4, _round_trips, plain)


def _compiled_lz4() -> _Encoder:
    from pipeline.cache.lz4 import compress_into  # importing numba takes a second that a plan can save

    return compress_into


def _round_trips(compress_into: _Encoder) -> bool:
    """Return whether blosc decompresses a test image correctly; it is partly flat and partly noise."""
    image = np.random.default_rng(0).integers(0, 256, (3, 24, 24), np.uint8)
    image[:, 8:] = 7
    memory = np.empty(room_for(image), np.uint8)
    end = compress_into(image, memory, 0)
    return numcodecs.blosc.decompress(memory[:end].tobytes()) == image.tobytes()


def _blosc_lz4(image: np.ndarray, memory: np.ndarray, at: int) -> int:
    return _append(numcodecs.blosc.compress(image, b"lz4", 5, numcodecs.blosc.NOSHUFFLE, 0, 1), memory, at)


def _append(packed: bytes, memory: np.ndarray, at: int) -> int:
    end = at + len(packed)
    memory[at:end] = np.frombuffer(packed, np.uint8)
    return end


@dataclass(frozen=True, slots=True)
class Codec:
    """The compressor of the inner chunks: lz4 or lz4hc inside blosc without shuffle, or zstd.

    The level applies to lz4hc and zstd; lz4 is always encoded by `pipeline.cache.lz4`.
    """

    name: str
    level: int

    def encode_into(self, image: np.ndarray, memory: np.ndarray, at: int) -> int:
        """Compress one (C, S, S) uint8 image and append its crc32c (4 bytes, little-endian).

        Args:
            memory: uint8, written from `at` on, with at least `room_for(image)` bytes left there.

        Returns:
            Offset in `memory` of the end of the chunk.
        """
        own = self.name == "lz4"
        end = _lz4_encoder()(image, memory, at) if own else _append(self._compress(image), memory, at)
        struct.pack_into("<I", memory.data, end, google_crc32c.value(memory[at:end]))
        return end + 4

    def _compress(self, image: np.ndarray) -> bytes:
        if self.name == "zstd":
            return bytes(Zstd(level=self.level).encode(image))
        return numcodecs.blosc.compress(image, self.name.encode(), self.level, numcodecs.blosc.NOSHUFFLE, 0, 1)

    def decode(self, chunk: bytes, image: np.ndarray) -> None:
        """Check the crc32c of one stored chunk and decompress it into `image`.

        Raises:
            ValueError: the checksum, the compressed data or the size is wrong.
        """
        packed = chunk[:-4]
        if len(chunk) < 4 or struct.unpack("<I", chunk[-4:])[0] != google_crc32c.value(packed):
            raise ValueError("checksum does not match")
        flat = image.reshape(-1)
        try:
            if self.name == "zstd":
                flat[:] = np.frombuffer(Zstd().decode(packed), np.uint8)
            else:
                flat[:] = np.frombuffer(numcodecs.blosc.decompress(packed), np.uint8)
        except RuntimeError as error:
            raise ValueError(f"cannot be decompressed: {error}") from error

    @staticmethod
    def of(stored: StoredArray) -> "Codec":
        """Return the compressor that an image array declares."""
        name, settings = stored.compressor
        if name == "zstd":
            return Codec("zstd", int(settings.get("level", 0)))
        return Codec(str(settings.get("cname", "lz4")), int(settings.get("clevel", 0)))


def room_for(image: np.ndarray) -> int:
    """Return the maximum number of bytes of a compressed image: incompressible data grows by 1/255."""
    return image.size + image.size // 255 + 128


class ShardWriter:
    """Writes one shard file image by image, flushing it to disk in the background.

    Source: Zarr v3 sharding codec: inner chunks one after another, then the index of (offset, length) pairs,
    uint64 little-endian, 2^64 - 1 twice for a missing chunk, then the crc32c of the index.
    """

    def __init__(self, path: Path, rows: int, codec: Codec) -> None:
        """Create the file of a shard with `rows` inner chunks."""
        self.digests: list[str | None] = [None] * rows
        self._codec = codec
        self._index = [(MISSING, MISSING)] * rows
        self._offset = 0
        self._file = path.open("wb", buffering=0)
        self._memory = np.empty(0, np.uint8)
        self._filled = 0
        self._flusher = ThreadPoolExecutor(1)
        self._flushed: Future[None] | None = None

    def add(self, position: int, image: np.ndarray) -> None:
        """Store one (C, S, S) uint8 image at a row of the shard, even if it is all zeros; keep its xxh3-128 digest."""
        if not self._memory.size:
            self._memory = np.empty(WRITE_BYTES + room_for(image), np.uint8)
        begin, self._filled = self._filled, self._codec.encode_into(image, self._memory, self._filled)
        length = self._filled - begin
        self._index[position] = self._offset, length
        self._offset += length
        self.digests[position] = xxhash.xxh3_128_hexdigest(image.data)
        if self._filled >= WRITE_BYTES:
            self._write_chunks()
            self._flush()

    def finish(self) -> int:
        """Write the index and close the file, without making its end durable; return its size in bytes."""
        index = np.array(self._index, "<u8").tobytes()
        self._write_chunks()
        self._write(memoryview(index + struct.pack("<I", google_crc32c.value(index))))
        self._close()
        return self._offset + len(index) + 4

    def _write_chunks(self) -> None:
        self._write(self._memory.data[: self._filled])
        self._filled = 0

    def _write(self, content: memoryview) -> None:
        while content:  # a disk that is nearly full accepts a part before it reports an error
            content = content[os.write(self._file.fileno(), content) :]

    def _flush(self) -> None:
        """Start flushing the data written so far to disk in the background, unless a flush is still running."""
        if self._flushed is None or self._flushed.done():
            if self._flushed is not None:
                self._flushed.result()
            self._flushed = self._flusher.submit(sync_data, self._file.fileno())

    def _close(self) -> None:
        self._flusher.shutdown()
        self._file.close()
        if self._flushed is not None:
            self._flushed.result()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._file.closed:
            with contextlib.suppress(OSError):  # the shard is already being abandoned because of another error
                self._close()


def read_shard(
    content: bytes, shape: tuple[int, ...], rows: int, codec: Codec
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """Decode every stored inner chunk of a shard file, verifying its checksum.

    Yields:
        (row within the shard, image of `shape` uint8, ""); the array is reused. For a damaged chunk the image is None,
        and the text describes the damage.

    Raises:
        ValueError: the index is damaged, so no row can be located.
    """
    image = np.empty(shape, np.uint8)
    for position, (offset, length) in enumerate(_read_index(content, rows)):
        if offset == MISSING and length == MISSING:
            continue
        try:
            codec.decode(content[offset : offset + length], image)
        except ValueError as error:
            yield position, None, str(error)
        else:
            yield position, image, ""


def read_image(
    content: bytes | mmap.mmap, shape: tuple[int, ...], rows: int, codec: Codec, position: int
) -> np.ndarray:
    """Decode the (C, S, S) uint8 image at one row of a shard file, verifying the checksums.

    Args:
        content: of the file, in memory or memory-mapped.

    Raises:
        ValueError: the index or the chunk is damaged, or the row has no chunk.
    """
    offset, length = _read_index(content, rows)[position]
    image = np.empty(shape, np.uint8)
    codec.decode(content[offset : offset + length], image)
    return image


def _read_index(content: bytes | mmap.mmap, rows: int) -> list[tuple[int, int]]:
    """Return the offset and length of every inner chunk; MISSING twice for a row without one."""
    index = content[-(rows * 16 + 4) :]
    if len(index) != rows * 16 + 4 or struct.unpack("<I", index[-4:])[0] != google_crc32c.value(index[:-4]):
        raise ValueError("the checksum of the index does not match")
    return [(offset, length) for offset, length in np.frombuffer(index[:-4], "<u8").reshape(rows, 2).tolist()]


def encode_sums(sums: np.ndarray) -> bytes:
    """Encode a (rows, C, 2) uint64 chunk of a sums array: little-endian bytes, then their crc32c."""
    content = sums.astype("<u8").tobytes()
    return content + struct.pack("<I", google_crc32c.value(content))


def sums_of(image: np.ndarray) -> np.ndarray:
    """Return the sum and sum of squares of the grey levels of a (C, S, S) uint8 image per channel: (C, 2) uint64."""
    flat = image.reshape(len(image), -1).astype(np.uint64)
    return np.stack([flat.sum(1), (flat * flat).sum(1)], 1)


def check_sums(content: bytes, rows: int, channels: int) -> str:
    """Return what is wrong with a stored chunk of a sums array, "" if nothing is."""
    if len(content) != rows * channels * 16 + 4:
        return f"{len(content)} bytes instead of {rows * channels * 16 + 4}"
    right = struct.unpack("<I", content[-4:])[0] == google_crc32c.value(content[:-4])
    return "" if right else "checksum does not match"

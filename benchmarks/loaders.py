"""The loaders of shuffled batches that `stream.py` compares: ours, and those in common use."""

import importlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from numcodecs import lz4
from torch.utils.data import DataLoader, Dataset

from training.data.arrays import CHECKSUM_BYTES
from training.data.cache import Cache
from training.data.dataset import SliceDataset
from training.data.neighbours import Context
from training.data.shards import CRC32C_OF_INTACT
from training.data.stream import Stream

WORKER_EPOCHS = 8  # read before a worker's CPU time is known, so that its start-up hardly counts
RING = 4  # batches of preallocated memory, for loaders that fill given memory
Epoch = Callable[[np.ndarray], Iterable[Any]]  # (n,) order -> batches


@dataclass(frozen=True)
class Slices:
    """The slices of a cache, for each loader to store in its own format.

    Attributes:
        pixels: (n, 3, S, S) uint8, a memory map, in the order of the cache's table.
        dicoms: the folder that the cache was built from, or None.
        folder: a folder for the loaders' files.
    """

    cache: Cache
    size: int
    batch_size: int
    pixels: np.ndarray
    dicoms: Path | None
    folder: Path

    @property
    def stored_bytes(self) -> int:
        """Bytes of the slices in the cache; its shards may also contain unused rows."""
        stream = Stream(self.cache, self.size, np.arange(self.cache.num_slices), self.batch_size)
        return int(stream.stored_bytes.sum())

    @property
    def array(self) -> Path:
        """The folder of the cache's image array."""
        return Path(self.cache.path, self.cache.array(self.size).name)

    def batches(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """Split an order into batches."""
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def ring(self) -> Iterator[np.ndarray]:
        """Yield (batch_size, 3, S, S) uint8 memory for one batch after another."""
        slots = np.zeros((RING, self.batch_size, *self.pixels.shape[1:]), np.uint8)
        while True:
            yield from slots

    def loader(self, dataset: Dataset) -> Epoch:
        """Read a map-style dataset with torch's DataLoader, in this process because only one core is used."""
        return lambda order: DataLoader(dataset, self.batch_size, sampler=order.tolist())


class Items(Dataset):
    """A map-style dataset based on a function."""

    def __init__(self, count: int, read: Callable[[int], torch.Tensor]) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, line: int) -> torch.Tensor:
        return self.read(line)


# --- loaders: each stores the slices, and returns the bytes used and a function that reads an epoch ------------------


def this_stream(slices: Slices) -> tuple[int, Epoch]:
    """training.data.stream with one thread, checksums verified."""
    stream = Stream(slices.cache, slices.size, np.arange(slices.cache.num_slices), slices.batch_size, threads=1)
    epochs = iter(range(1 << 30))
    return slices.stored_bytes, lambda order: (batch.images for batch in stream.epoch(0, next(epochs)))


def this_stream_with_context(slices: Slices) -> tuple[int, Epoch]:
    """training.data.stream with one thread, each slice with its two neighbours (--context 1)."""
    context = Context(1, tuple(range(len(slices.cache.windows))))
    lines = np.arange(slices.cache.num_slices)
    stream = Stream(slices.cache, slices.size, lines, slices.batch_size, threads=1, context=context)
    epochs = iter(range(1 << 30))
    return slices.stored_bytes, lambda order: (batch.images for batch in stream.epoch(0, next(epochs)))


def memory_map(slices: Slices) -> tuple[int, Epoch]:
    """Memory map of raw pixels, gathered into a ring (the lower bound)."""
    ring = slices.ring()

    def epoch(order: np.ndarray) -> Iterator[np.ndarray]:
        for lines in slices.batches(order):
            yield np.take(slices.pixels, lines, axis=0, out=next(ring)[: len(lines)], mode="clip")

    return slices.pixels.nbytes, epoch


def zarr_item(slices: Slices) -> tuple[int, Epoch]:
    """zarr-python, z[i] in a DataLoader."""
    import zarr

    path = slices.array
    stored: Any = zarr.open_array(path, mode="r")
    rows = slices.cache.table["row"].tolist()
    return slices.stored_bytes, slices.loader(Items(len(rows), lambda line: torch.from_numpy(stored[rows[line]])))


def dataset_in_loader(slices: Slices) -> tuple[int, Epoch]:
    """training.SliceDataset in a DataLoader, checksums verified."""
    dataset = SliceDataset(slices.cache, slices.size, np.arange(slices.cache.num_slices))
    return slices.stored_bytes, lambda order: (
        batch["image"] for batch in DataLoader(dataset, slices.batch_size, sampler=order.tolist())
    )


def dataset_in_worker(slices: Slices) -> tuple[int, Epoch]:
    """training.SliceDataset in a DataLoader with one worker, checksums verified."""
    dataset = SliceDataset(slices.cache, slices.size, np.arange(slices.cache.num_slices))

    def epoch(order: np.ndarray) -> Iterator[torch.Tensor]:
        sampler = np.tile(order, WORKER_EPOCHS).tolist()
        yield from (batch["image"] for batch in DataLoader(dataset, slices.batch_size, sampler=sampler, num_workers=1))

    return slices.stored_bytes, epoch


def zarr_batch(slices: Slices) -> tuple[int, Epoch]:
    """zarr-python, one read per batch; from version 3.3 it joins reads of a shard."""
    import zarr

    stored: Any = zarr.open_array(slices.array, mode="r")
    rows = slices.cache.table["row"].to_numpy()
    return slices.stored_bytes, lambda order: (stored.oindex[rows[lines]] for lines in slices.batches(order))


def annbatch_loader(slices: Slices) -> tuple[int, Epoch]:
    """annbatch, each slice drawn separately (chunk_size=1), its shards and zstd."""
    import zarr

    annbatch = importlib.import_module("annbatch")
    path, (count, *shape) = slices.folder / "annbatch", slices.pixels.shape
    pixels = int(np.prod(shape))
    array = zarr.create_array(path, shape=(count, pixels), chunks=(1, pixels), shards=(256, pixels), dtype="uint8")
    array[:] = slices.pixels.reshape(count, pixels)

    def epoch(order: np.ndarray) -> Iterator[torch.Tensor]:
        draws = {"chunk_size": 1, "preload_nchunks": slices.batch_size, "batch_size": slices.batch_size}
        rng = np.random.default_rng(int(order[0]))
        loader = annbatch.Loader(shuffle=True, rng=rng, to="torch", preload_to_gpu=False, **draws)
        for batch in loader.add_dataset(zarr.open_array(path, mode="r")):
            yield batch["X"].view(-1, *shape)

    return bytes_in(path), epoch


def tensorstore_batch(slices: Slices) -> tuple[int, Epoch]:
    """tensorstore, one read per batch."""
    tensorstore = importlib.import_module("tensorstore")
    path = slices.array
    store = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(path)},
            "context": {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}},
        }
    ).result()
    rows = slices.cache.table["row"].to_numpy()
    return slices.stored_bytes, lambda order: (store[rows[lines]].read().result() for lines in slices.batches(order))


def lmdb_lz4(slices: Slices) -> tuple[int, Epoch]:
    """LMDB, LZ4 values into a ring, nothing verified."""
    return _lmdb(slices, "lmdb", lambda stored: None)


def lmdb_lz4_checksum(slices: Slices) -> tuple[int, Epoch]:
    """LMDB, LZ4 values into a ring, the CRC-32C of each verified."""

    def verify(stored: memoryview) -> None:
        if google_crc32c.value(np.frombuffer(stored, np.uint8)) != CRC32C_OF_INTACT:
            raise ValueError("a value is damaged")

    return _lmdb(slices, "lmdb-checksum", verify)


def _lmdb(slices: Slices, name: str, verify: Callable[[memoryview], None]) -> tuple[int, Epoch]:
    """Store LZ4 with its CRC-32C; open as the documentation recommends for random access."""
    lmdb = importlib.import_module("lmdb")
    path, ring = slices.folder / name, slices.ring()
    with lmdb.open(str(path), map_size=slices.pixels.nbytes * 2) as environment, environment.begin(write=True) as write:
        for line, image in enumerate(slices.pixels):
            packed = lz4.compress(np.ascontiguousarray(image))
            write.put(str(line).encode(), packed + google_crc32c.value(packed).to_bytes(CHECKSUM_BYTES, "little"))
    environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)

    def epoch(order: np.ndarray) -> Iterator[np.ndarray]:
        with environment.begin(buffers=True) as transaction:
            for lines in slices.batches(order):
                images = next(ring)[: len(lines)]
                for line, image in zip(lines.tolist(), images.reshape(len(lines), -1), strict=True):
                    stored = transaction.get(str(line).encode())
                    lz4.decompress(stored[:-CHECKSUM_BYTES], image)
                    verify(stored)
                yield images

    return bytes_in(path), epoch


def webdataset_raw(slices: Slices) -> tuple[int, Epoch]:
    """WebDataset, raw pixels in tar shards, its shuffle buffer."""
    webdataset = importlib.import_module("webdataset")
    path = slices.folder / "webdataset"
    path.mkdir()
    for first in range(0, len(slices.pixels), 256):
        with tarfile.open(path / f"{first:06d}.tar", "w") as tar:
            for line in range(first, min(first + 256, len(slices.pixels))):
                data = slices.pixels[line].tobytes()
                member = tarfile.TarInfo(f"{line:09d}.raw")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    shape = slices.pixels.shape[1:]
    shards = sorted(str(file) for file in path.iterdir())

    def epoch(order: np.ndarray) -> Iterable[Any]:
        dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=int(order[0])).shuffle(1000)
        images = dataset.map(lambda item: (np.frombuffer(item["raw"], np.uint8).reshape(shape),))
        return (batch for (batch,) in webdataset.WebLoader(images.batched(slices.batch_size), batch_size=None))

    return bytes_in(path), epoch


def mosaicml_loader(slices: Slices) -> tuple[int, Epoch]:
    """MosaicML Streaming, zstd shards, its shuffle, through a DataLoader."""
    streaming = importlib.import_module("streaming")
    path, shape = slices.folder / "mosaicml", slices.pixels.shape[1:]
    columns = {"image": f"ndarray:uint8:{','.join(map(str, shape))}"}
    with streaming.MDSWriter(out=str(path), columns=columns, compression="zstd", hashes=["xxh64"]) as writer:
        for image in slices.pixels:
            writer.write({"image": np.asarray(image)})
    stored = bytes_in(path)  # the first epoch adds decompressed shards
    dataset = streaming.StreamingDataset(local=str(path), shuffle=True, batch_size=slices.batch_size)
    return stored, lambda order: (batch["image"] for batch in DataLoader(dataset, slices.batch_size))


def litdata_loader(slices: Slices) -> tuple[int, Epoch]:
    """LitData, zstd chunks, through its StreamingDataLoader."""
    litdata = importlib.import_module("litdata")
    path = slices.folder / "litdata"
    pixels = slices.folder / "pixels.npy"
    read = _PixelReader(pixels)
    litdata.optimize(
        read, list(range(len(slices.pixels))), str(path), chunk_bytes="64MB", compression="zstd", num_workers=1
    )
    dataset = litdata.StreamingDataset(str(path), shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=slices.batch_size, num_workers=0)
    return bytes_in(path), lambda order: (batch["image"] for batch in loader)


class _PixelReader:
    """Reads a slice from the raw pixels; LitData runs it in a separate process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: int) -> dict[str, np.ndarray]:
        return {"image": np.load(self.path, mmap_mode="r")[line].copy()}


def png_folder(slices: Slices) -> tuple[int, Epoch]:
    """A folder of PNG files in a DataLoader."""
    from PIL import Image

    path = slices.folder / "png"
    path.mkdir()
    for line, image in enumerate(slices.pixels):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path / f"{line}.png")

    def read(line: int) -> torch.Tensor:
        with Image.open(path / f"{line}.png") as picture:
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    return bytes_in(path), slices.loader(Items(len(slices.pixels), read))


def monai_persistent(slices: Slices) -> tuple[int, Epoch]:
    """MONAI PersistentDataset in a DataLoader."""
    data = importlib.import_module("monai.data")
    path = slices.folder / "monai"
    dataset = data.PersistentDataset(list(range(len(slices.pixels))), _as_tensor(slices), cache_dir=path)
    for line in range(len(dataset)):
        dataset[line]
    return bytes_in(path), slices.loader(dataset)


def monai_in_memory(slices: Slices) -> tuple[int, Epoch]:
    """MONAI CacheDataset, everything in memory, in a DataLoader."""
    data = importlib.import_module("monai.data")
    lines = list(range(len(slices.pixels)))
    dataset = data.CacheDataset(lines, _as_tensor(slices), num_workers=0, progress=False)
    return slices.pixels.nbytes, slices.loader(dataset)


def _as_tensor(slices: Slices) -> Any:
    """Return the transform from a line to its slice; MONAI caches only results of its own Transform classes."""
    transforms = importlib.import_module("monai.transforms")

    class ReadSlice(transforms.Transform):  # type: ignore[misc, name-defined]
        def __call__(self, line: int) -> torch.Tensor:
            return torch.from_numpy(slices.pixels[line].copy())

    return ReadSlice()


def dicom_item(slices: Slices) -> tuple[int, Epoch]:
    """DICOM in __getitem__: dcmread, float windows, Pillow."""
    import pydicom
    from PIL import Image

    if slices.dicoms is None:
        raise ImportError("no --dicoms given")
    files = sorted(file for file in slices.dicoms.rglob("*") if file.is_file())[: len(slices.pixels)]
    windows = slices.cache.windows

    def read(line: int) -> torch.Tensor:
        dataset = pydicom.dcmread(files[line])
        hu = dataset.pixel_array.astype(np.float32) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        low = [window.level_hu - window.width_hu / 2 for window in windows]
        grey = [np.clip((hu - start) / w.width_hu, 0, 1) * 255 for start, w in zip(low, windows, strict=True)]
        picture = Image.fromarray(np.stack(grey, -1).astype(np.uint8))
        resized = picture.resize((slices.size, slices.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    return bytes_in(slices.dicoms), slices.loader(Items(len(files), read))


def bytes_in(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


FLOOR = memory_map
# After a fork, the memory of this process, including rings, is copied page by page when it is next written.
FORKS = (dataset_in_worker,)
WAYS: tuple[Callable[[Slices], tuple[int, Epoch]], ...] = (
    memory_map,
    this_stream,
    dataset_in_loader,
    dataset_in_worker,
    this_stream_with_context,
    lmdb_lz4,
    lmdb_lz4_checksum,
    tensorstore_batch,
    monai_in_memory,
    monai_persistent,
    mosaicml_loader,
    litdata_loader,
    webdataset_raw,
    annbatch_loader,
    zarr_batch,
    zarr_item,
    png_folder,
    dicom_item,
)

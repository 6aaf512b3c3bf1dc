"""The Zarr store of a run's features, with a digest of every block that is checked on reading.

`features.zarr` holds the arrays, and `features.digests.json` next to it the SHA-256 of each of its zarr.json files and
of each block of lines. Before a block is written, its new digest is added to the old one. Digests cover only the lines
that are done, so a block whose writing was interrupted still matches one of the two.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from training.data.cache import Cache
from training.errors import RunError
from training.run.digests import cannot_write, check
from training.run.documents import read_document
from training.run.runs import Run, digest
from training.run.tables import write_json
from training.system import read_whole

# Lines of the table per chunk, which is one file: 2 MB for 2,048 features.
CHUNK_LINES = 512
BLOCK_LINES = 8192  # lines per digest
ARRAYS = ("features", "logits", "done")  # in the order of writing: lines without `done` are recomputed
DOCUMENTS = ("zarr.json", *(f"{name}/zarr.json" for name in ARRAYS))


class DamagedFeatures(RunError):
    """Stored features differ from those that were written."""


class MissingFeatures(RunError):
    """Features have not been written yet."""


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a store.

    Attributes:
        features: (n, D) float16.
        logits: (n, K) float32.
        done: (n,) uint8, 1 if both have been written.
    """

    features: np.ndarray
    logits: np.ndarray
    done: np.ndarray

    def digest(self) -> str:
        """Return the SHA-256 of `done` and of the lines that are done."""
        found, written = hashlib.sha256(self.done.data), self.done.astype(bool)
        for values in (self.features, self.logits):
            found.update(np.ascontiguousarray(values if written.all() else values[written]).data)
        return found.hexdigest()


@dataclass(frozen=True)
class Store:
    """An open store of N lines, checked to be for the run's weights and commit.

    Attributes:
        path: folder of the store.
        arrays: name -> Zarr array.
        digests: first line of a block, as text -> its valid SHA-256 digests.
        documents: name of a zarr.json file -> its SHA-256.
        shape: N, D and K.
        remedy: text for errors: the command that writes missing or damaged features.
    """

    path: Path
    arrays: Mapping[str, Any]
    digests: dict[str, list[str]]
    documents: Mapping[str, str]
    shape: tuple[int, int, int]
    remedy: str

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the first line of each block, and the line after its last."""
        for first in range(0, self.shape[0], BLOCK_LINES):
            yield first, min(first + BLOCK_LINES, self.shape[0])

    def read(self, first: int, end: int) -> Block:
        """Read a block, of zeros if it has not been written yet; raise DamagedFeatures if its digest does not match."""
        allowed = self.digests.get(str(first))
        if allowed is None:
            return self._empty(end - first)
        reason = "its SHA-256 differs"
        try:
            block = Block(*(self.arrays[name][first:end] for name in ARRAYS))
            if block.digest() in allowed:
                return block
        except (ValueError, OSError, RuntimeError) as error:  # zarr and its codecs
            reason = str(error)
        raise DamagedFeatures(f"{self.path}: lines {first} to {end - 1} are damaged ({reason}); {self.remedy}")

    def done(self) -> np.ndarray:
        """Return (N,) bool: the lines that have been written and are intact."""
        found = np.zeros(self.shape[0], bool)
        for first, end in self.blocks():
            found[first:end] = self._read_intact(first, end).done
        return found

    def write(self, first: int, end: int, lines: np.ndarray, values: tuple[np.ndarray, np.ndarray]) -> None:
        """Write lines of a block and keep its other lines, unless the block is damaged.

        Args:
            first: first line of the block.
            end: line after its last.
            lines: (n,), counted from `first`.
            values: features (n, D) and logits (n, K).

        Raises:
            RunError: if the store cannot be written.
        """
        block = self._read_intact(first, end)
        known = [block.digest()] if block.done.any() else []
        block.features[lines], block.logits[lines], block.done[lines] = *values, 1
        self.digests[str(first)] = [*known, block.digest()]
        write_digests(self.path, self.documents, self.digests)
        try:
            for name in ARRAYS:
                self.arrays[name][first:end] = getattr(block, name)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _read_intact(self, first: int, end: int) -> Block:
        """Read a block, of zeros if it is damaged."""
        try:
            return self.read(first, end)
        except DamagedFeatures:
            return self._empty(end - first)

    def _empty(self, n: int) -> Block:
        _, d, k = self.shape
        return Block(np.zeros((n, d), np.float16), np.zeros((n, k), np.float32), np.zeros(n, np.uint8))


def store_path(run: Run, *, tta: bool) -> Path:
    """Return the path of the features of a slice model's run."""
    return run.path / f"features{'_tta' if tta else ''}.zarr"


def remedy(run: Run, *, tta: bool) -> str:
    """Return the command that writes the features of a run, for an error message."""
    return f"run: train features --run {run.path}{' --tta' if tta else ''}"


def open_store(run: Run, cache: Cache, *, tta: bool) -> Store:
    """Open the store of a slice model's run for reading and writing.

    Args:
        run: the slice model's run.
        cache: the commit that the store must be for.
        tta: whether to open the store of means over the TTA views.

    Raises:
        MissingFeatures: if there is no store.
        RunError: if it is for other weights, another commit or another image size.
        DamagedFeatures: if one of its documents is damaged or missing.
    """
    path, again = store_path(run, tta=tta), remedy(run, tta=tta)
    if not path.exists():
        raise MissingFeatures(f"{path}: has no features yet; {again}")
    again = f"remove {path}, then {again}"
    documents, digests = _read_digests(path, again)
    for name in DOCUMENTS:
        if digest_of(path / name) != documents.get(name):
            raise DamagedFeatures(f"{path / name}: is damaged or missing: its SHA-256 differs; {again}")
    try:
        group: Any = zarr.open_group(path, mode="r+")
        for name, wanted in _attributes(run, cache, tta=tta).items():
            if (stored := group.attrs.get(name)) != wanted:
                different = f"{name} {str(stored)[:16]} instead of {str(wanted)[:16]}"
                raise RunError(f"{path}: is not for this run and cache ({different}); {again}")
        arrays = {name: group[name] for name in ARRAYS}
        width = arrays["features"].shape[-1]
        for name, (shape, dtype) in _layout(run, cache, width).items():
            if (arrays[name].shape, str(arrays[name].dtype)) != (shape, dtype):
                raise ValueError(f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFeatures(f"{path}: cannot be read as features ({error}); {again}") from error
    shapes = cache.num_slices, width, len(run.data.classes)
    return Store(path, arrays, digests, documents, shapes, remedy(run, tta=tta))


def make_store(run: Run, cache: Cache, num_features: int, *, tta: bool) -> None:
    """Create an empty store for all lines of a cache.

    Raises:
        RunError: if it cannot be written.
    """
    path = store_path(run, tta=tta)
    unfinished = path.with_name(f".unfinished.{path.name}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        group = zarr.create_group(unfinished, attributes=_attributes(run, cache, tta=tta))
        for name, (shape, dtype) in _layout(run, cache, num_features).items():
            chunks = (CHUNK_LINES, *shape[1:])
            group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, compressors=[Crc32cCodec()], fill_value=0)
        write_digests(path, {name: str(digest_of(unfinished / name)) for name in DOCUMENTS}, {})
        unfinished.rename(path)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise cannot_write(path, error) from error


def digests_path(store: Path) -> Path:
    """Return the path of a store's digests, next to it because they are not part of a Zarr group."""
    return store.with_suffix(".digests.json")


def write_digests(store: Path, documents: Mapping[str, str], blocks: Mapping[str, list[str]]) -> None:
    """Write the digests of a store's documents and blocks."""
    write_json(digests_path(store), {"documents": documents, "blocks": blocks})


def digest_of(file: Path) -> str | None:
    """Return the SHA-256 of a small file, None if it cannot be read."""
    try:
        return hashlib.sha256(read_whole(file)).hexdigest()
    except OSError:
        return None


def _read_digests(store: Path, again: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    file = digests_path(store)
    check(file, again)
    try:
        content = read_document(file)
        blocks = {str(first): [str(one) for one in of] for first, of in content["blocks"].items()}
        return {str(name): str(of) for name, of in content["documents"].items()}, blocks
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFeatures(f"{file}: cannot be read ({error}); {again}") from error


def _layout(run: Run, cache: Cache, num_features: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and the dtype of each array."""
    n = cache.num_slices
    return {
        "features": ((n, num_features), "float16"),
        "logits": ((n, len(run.data.classes)), "float32"),
        "done": ((n,), "uint8"),
    }


def _attributes(run: Run, cache: Cache, *, tta: bool) -> dict[str, Any]:
    return {
        "commit": cache.commit,
        "weights": digest(run.slice_weights),
        "size_px": run.config.size_px,
        "tta": tta,
    }

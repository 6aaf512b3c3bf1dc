"""Open a cache: one commit's settings, its table, its sums, and where its image arrays lie."""

import difflib
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from training.data.arrays import (
    CHECKSUM_BYTES,
    CommitStore,
    ImageArray,
    image_array,
    index_bytes,
    open_array,
    read_rows,
)
from training.data.commit import FORMAT_VERSION, Commit, Window, read_commit
from training.data.folder import REPAIR, Folder
from training.data.mirror import Mirror, open_files
from training.errors import CacheError
from training.system import read_whole
from training.words import counted

TEXT_COLUMNS = ("image_id", "sop_instance_uid", "patient_id", "study_instance_uid", "series_instance_uid")
TABLE_COLUMNS = ("row", *TEXT_COLUMNS, "frame", "z_mm", "z_norm")


@dataclass(frozen=True)
class Cache:
    r"""One commit of a cache, as docs/cache_format.md describes it. Later commits do not change it.

    Attributes:
        path: the cache's folder or address, as it was given.
        commit: the commit's id, 16 hex digits.
        windows: in channel order.
        classes: names, in column order; empty where the cache has no labels.
        class_weights: (K,) float32, in the order of `classes`.
        splits: shares of the patients for train, validation and test, as the catalog states them.
        label_level: what one label is for: slice, series, study or patient; a slice has that of what it is part of.
        sizes: image sides S in pixels, ascending.
        rows_per_shard: slices in one shard.
        num_slices: lines of the table, N.
        table: N lines in the format's order and columns; texts as str, z and labels float64, NaN where absent.
        keys: (N,) uint64, one a line: what order, split and random numbers are keyed by. 8-byte BLAKE2b,
            little-endian, of the UTF-8 text "<sop_instance_uid>\x1f<frame>".
    """

    path: str
    commit: str
    windows: tuple[Window, ...]
    classes: tuple[str, ...]
    class_weights: np.ndarray
    splits: tuple[float, float, float]
    label_level: str
    sizes: tuple[int, ...]
    rows_per_shard: int
    num_slices: int
    table: pd.DataFrame = field(repr=False)
    keys: np.ndarray = field(repr=False)
    _files: Folder | Mirror = field(repr=False)
    _commit: Commit = field(repr=False)

    @property
    def dataset(self) -> str:
        """Name of the catalog entry that the cache was built from."""
        return self._commit.dataset

    def labels(self) -> np.ndarray:
        """Return the labels, (N, K) float32: 0 or 1, NaN where a slice has none.

        Raises:
            CacheError: the cache was built without labels.
        """
        if not self.classes:
            raise CacheError(f"{self.path}: has no labels; run: pipeline build ... --labels FILE")
        return self.table[list(self.classes)].to_numpy(np.float32)

    def array(self, size: int) -> ImageArray:
        """Return the image array of one size.

        Raises:
            CacheError: the size was not built, or its array is stored in another way than the format's.
        """
        return image_array(self._store, self._files, self._array_name(self._commit.sizes, size))

    def images(self, size: int) -> "zarr.Array[Any]":
        """Return the images of one size as zarr-python has them, (rows, C, S, S) uint8, to be read.

        The table's column `row` says which row is which slice; the others mean nothing. A shard that the table names
        and that is missing is an error; for the check of every single slice use `Stream` or `SliceDataset`.

        Raises:
            CacheError: the size was not built.
        """
        return open_array(self._store, self._files, self._array_name(self._commit.sizes, size))

    def series(self, uid: str) -> pd.DataFrame:
        """Return the table's lines of one series, from foot to head; the index holds their positions in `table`.

        Raises:
            CacheError: the cache has no such series.
        """
        lines = self.table[self.table["series_instance_uid"] == uid]
        if (studies := len(lines[["patient_id", "study_instance_uid"]].drop_duplicates())) > 1:
            raise CacheError(
                f"{self.path}: {studies} studies have a series {uid}; choose the rows of one in the cache's table, by "
                "patient_id, study_instance_uid and series_instance_uid"
            )
        if lines.empty:
            near = difflib.get_close_matches(uid, self.table["series_instance_uid"].unique(), n=1)
            hint = f"did you mean {near[0]}?" if near else "the column series_instance_uid of its table lists them all"
            raise CacheError(f"{self.path}: has no series {uid}; {hint}")
        return lines.sort_values(["z_norm", "sop_instance_uid", "frame"], kind="stable")

    def sums(self, size: int, rows: np.ndarray) -> np.ndarray:
        """Return sum and sum of squares of the grey levels by slice and channel.

        Args:
            rows: (n,) rows of the arrays, any order.

        Returns:
            (n, C, 2) uint64.

        Raises:
            CacheError: the size was not built, or the sums are damaged or missing.
        """
        array = open_array(self._store, self._files, self._array_name(self._commit.sums, size))
        return read_rows(array, self._files, np.asarray(rows))

    def mean_std(self, size: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and population standard deviation by channel of grey level / 255 over all pixels of `rows`.

        Exact: the sums are added as integers, and only their quotients are rounded, to float64.

        Returns:
            (C,) float64 mean and (C,) float64 standard deviation, in [0, 1].
        """
        totals = self.sums(size, rows).sum(axis=0, dtype=np.uint64)
        n = len(rows) * size * size
        mean = [int(s) / (n * 255) for s, _ in totals]
        variance = [(n * int(q) - int(s) ** 2) / (n * 255) ** 2 for s, q in totals]
        return np.array(mean), np.sqrt(np.array(variance))

    @cached_property
    def _store(self) -> CommitStore:
        tail_bytes = dict.fromkeys(self._commit.sums.values(), CHECKSUM_BYTES)
        tail_bytes |= dict.fromkeys(self._commit.sizes.values(), index_bytes(self.rows_per_shard))
        live = frozenset((self.table["row"] // self.rows_per_shard).tolist())
        return CommitStore(self._files, self._commit.arrays, tail_bytes, live)

    def _array_name(self, names: Mapping[int, str], size: int) -> str:
        if size not in names:
            built = ", ".join(str(side) for side in self.sizes)
            raise CacheError(
                f"{self.path}: built at {built} px; this run needs {size}; run: pipeline build ... --size {size}"
            )
        return names[size]


def open_cache(path: str | Path, commit: str | None = None, local_copy: Path | None = None) -> Cache:
    """Open the current commit of a cache, or the one with the given id.

    Args:
        path: its folder, or its address, s3://bucket/cache.zarr say.
        local_copy: a folder on local disk where what is read of the cache is copied to; an address needs one.

    Raises:
        CacheError: no cache, an unfinished or damaged one, another format or version, or no such commit.
    """
    files = open_files(str(path), local_copy)
    found = read_commit(files, commit)
    return _cache(files.of_cache(found.cache), found)


def slice_keys(sop_instance_uids: pd.Series, frames: pd.Series) -> np.ndarray:
    """Return the (N,) uint64 keys of slices; see `Cache.keys`."""
    digests = (
        hashlib.blake2b(f"{uid}\x1f{frame}".encode(), digest_size=8).digest()
        for uid, frame in zip(sop_instance_uids.tolist(), frames.tolist(), strict=True)
    )
    return np.frombuffer(b"".join(digests), "<u8")


def _cache(files: Folder | Mirror, commit: Commit) -> Cache:
    table = _read_table(files, commit)
    if len(table) != commit.num_slices:
        raise CacheError(
            f"{files.address}: the table has {counted(len(table), 'line')}, the commit "
            f"{counted(commit.num_slices, 'slice')}; {REPAIR}"
        )
    return Cache(
        path=files.address,
        commit=commit.id,
        windows=commit.windows,
        classes=commit.classes,
        class_weights=np.array(commit.class_weights, np.float32),
        splits=commit.splits,
        label_level=commit.label_level,
        sizes=tuple(commit.sizes),
        rows_per_shard=commit.rows_per_shard,
        num_slices=len(table),
        table=table,
        keys=slice_keys(table["sop_instance_uid"], table["frame"]),
        _files=files,
        _commit=commit,
    )


def _read_table(files: Folder | Mirror, commit: Commit) -> pd.DataFrame:
    file, classes = files.fetch(commit.table_name, 0), commit.classes
    try:
        content = read_whole(file)
    except OSError as error:
        raise CacheError(f"{file}: the commit's table cannot be read ({error.strerror}); {files.way_out}") from error
    if hashlib.sha256(content).hexdigest() != commit.table_digest:
        raise CacheError(f"{file}: the table is damaged: its digest is not the commit's; {files.way_out}")
    table = pd.read_csv(
        io.BytesIO(content),
        dtype=dict.fromkeys(TEXT_COLUMNS, str)
        | dict.fromkeys(("row", "frame"), np.int64)
        | dict.fromkeys(classes, float),
        # The parser of pandas 2 is off by a bit in some numbers; Python's is exact.
        converters=dict.fromkeys(("z_mm", "z_norm"), lambda text: float(text or "nan")),
        # An identifier may be the text "NA" or "null"; only an empty number is absent.
        keep_default_na=False,
        na_values=dict.fromkeys(classes, ""),
    )
    if tuple(table.columns) != (*TABLE_COLUMNS, *classes):
        raise CacheError(f"{file}: the table's columns are not those of format version {FORMAT_VERSION}; {REPAIR}")
    return table

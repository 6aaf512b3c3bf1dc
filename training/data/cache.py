"""Open a cache: one commit with its settings, table, image arrays and sums of grey levels."""

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
        classes: names, in column order; empty if the cache has no labels.
        class_weights: (K,) float32, in the order of `classes`.
        splits: proportions of patients for train, validation and test, as set in the catalog.
        label_level: what a label describes: slice, series, study or patient; each slice carries the label of the
            series, study or patient that it belongs to.
        sizes: image sides S in pixels, ascending.
        rows_per_shard: slices in one shard.
        num_slices: lines of the table, N.
        table: N lines, with the order and columns of the format; text as str, z and labels as float64, NaN if absent.
        keys: (N,) uint64, one per line, on which order, split and random numbers are based: 8-byte BLAKE2b,
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
        """Return the labels, (N, K) float32: 0 or 1, NaN for a slice without a label.

        Raises:
            CacheError: if the cache was built without labels.
        """
        if not self.classes:
            raise CacheError(f"{self.path}: has no labels; run: pipeline build ... --labels FILE")
        return self.table[list(self.classes)].to_numpy(np.float32)

    def array(self, size: int) -> ImageArray:
        """Return the image array of one size.

        Raises:
            CacheError: if the size was not built, or its array is not stored as the format requires.
        """
        return image_array(self._store, self._files, self._array_name(self._commit.sizes, size))

    def images(self, size: int) -> "zarr.Array[Any]":
        """Return the images of one size as a read-only zarr-python array, (rows, C, S, S) uint8.

        The column `row` of the table gives the row of each slice; all other rows are meaningless. Reading a shard that
        the table refers to but that is missing is an error. To check each slice as well, use `Stream` or
        `SliceDataset`.

        Raises:
            CacheError: if the size was not built.
        """
        return open_array(self._store, self._files, self._array_name(self._commit.sizes, size))

    def series(self, uid: str) -> pd.DataFrame:
        """Return the table's lines for one series, from foot to head; the index holds their positions in `table`.

        Raises:
            CacheError: if the cache has no such series, or has one in several studies.
        """
        lines = self.table[self.table["series_instance_uid"] == uid]
        if (studies := len(lines[["patient_id", "study_instance_uid"]].drop_duplicates())) > 1:
            raise CacheError(
                f"{self.path}: {studies} studies have a series {uid}; choose the rows of one in the cache's table, by "
                "patient_id, study_instance_uid and series_instance_uid"
            )
        if lines.empty:
            near = difflib.get_close_matches(uid, self.table["series_instance_uid"].unique(), n=1)
            hint = f"did you mean {near[0]}?" if near else "its table lists them all in the column series_instance_uid"
            raise CacheError(f"{self.path}: has no series {uid}; {hint}")
        return lines.sort_values(["z_norm", "sop_instance_uid", "frame"], kind="stable")

    def sums(self, size: int, rows: np.ndarray) -> np.ndarray:
        """Return the sum and the sum of squares of the grey levels, for each slice and channel.

        Args:
            rows: (n,) rows of the arrays, in any order.

        Returns:
            (n, C, 2) uint64.

        Raises:
            CacheError: if the size was not built, or the sums are damaged or missing.
        """
        array = open_array(self._store, self._files, self._array_name(self._commit.sums, size))
        return read_rows(array, self._files, np.asarray(rows))

    def mean_std(self, size: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and population standard deviation of grey level / 255 per channel, over all pixels of `rows`.

        The result is exact up to the final rounding to float64, because the sums are added as integers.

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
        path: the cache's folder, or its address, such as s3://bucket/cache.zarr.
        commit: the commit's id, 16 hex digits; None for the current commit.
        local_copy: a folder on a local disk in which to keep copies of the files that are read; required for an
            address.

    Raises:
        CacheError: if there is no cache, it is unfinished or damaged, its format or version is not supported, or it
            has no such commit.
    """
    files = open_files(str(path), local_copy)
    found = read_commit(files, commit)
    return _cache(files.for_cache(found.cache), found)


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
            f"{files.address}: the table has {counted(len(table), 'line')}, but the commit has "
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
        raise CacheError(f"{file}: the commit's table cannot be read ({error.strerror}); {files.remedy}") from error
    if hashlib.sha256(content).hexdigest() != commit.table_digest:
        raise CacheError(f"{file}: the table is damaged: its digest does not match the commit; {files.remedy}")
    table = pd.read_csv(
        io.BytesIO(content),
        dtype=dict.fromkeys(TEXT_COLUMNS, str)
        | dict.fromkeys(("row", "frame"), np.int64)
        | dict.fromkeys(classes, float),
        # The parser of pandas 2 gets the last bit of some numbers wrong; Python's is exact.
        converters=dict.fromkeys(("z_mm", "z_norm"), lambda text: float(text or "nan")),
        # "NA" and "null" are valid identifiers; only an empty label is missing.
        keep_default_na=False,
        na_values=dict.fromkeys(classes, ""),
    )
    if tuple(table.columns) != (*TABLE_COLUMNS, *classes):
        raise CacheError(f"{file}: the table's columns are not those of format version {FORMAT_VERSION}; {REPAIR}")
    return table

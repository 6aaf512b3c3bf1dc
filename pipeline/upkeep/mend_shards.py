"""This file rebuilds a shard and its done-record, row by row, from what can still be read and from the source."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline import kernel
from pipeline.cache import layout
from pipeline.cache.commits import Commit
from pipeline.cache.drafts import Drafts
from pipeline.cache.files import write_atomic
from pipeline.cache.ledger import UNREAD, digest_hex
from pipeline.cache.shards import Codec, ShardWriter, encode_sums, read_shard
from pipeline.dicom.read import read_slices
from pipeline.dicom.records import Reject, Slice, SliceRecord
from pipeline.engine.convert import FILE_FIELDS, REJECT_FIELDS, SLICE_FIELDS, library_versions, now
from pipeline.errors import CacheError
from pipeline.planning.catalog import Reading, Window
from pipeline.source.sources import Buffer, Source
from pipeline.tables.patients import key_digest
from pipeline.upkeep.examination import Examination
from pipeline.upkeep.verify_shards import document_of, row_problems, spec_of


@dataclass(slots=True)
class Lost:
    """What cannot be had back.

    Attributes:
        rows: of the arrays.
        slots: (shard, slot) of the files that they, or rejects, came from.
    """

    rows: set[int] = field(default_factory=set)
    slots: set[tuple[int, int]] = field(default_factory=set)


class NeedsSource(Exception):
    """Something can only be mended from the DICOM files, which were not given."""


@dataclass(frozen=True, slots=True)
class Originals:
    """Where lost images can be made again from.

    Attributes:
        source: the DICOM files, None where they were not given.
        patient_key: of the user, None where there is none.
    """

    source: Source | None
    patient_key: bytes | None

    def read(self, path: str, digest: str) -> memoryview | None:
        """The content of a file, None where it is gone or has changed.

        Raises:
            NeedsSource: there is no source to read it from.
        """
        if self.source is None:
            raise NeedsSource("some of it must be made again from the DICOM files: give --src")
        try:
            data, _ = self.source.read(path, Buffer())
        except OSError:
            return None
        return data if xxhash.xxh3_128_hexdigest(data) == digest else None


def drop_shard(found: Examination, shard: int) -> None:
    """Forget a shard that no commit names; the next build converts what it may have been for."""
    found.records.pop(shard, None)
    layout.record_file(found.root, shard).unlink(missing_ok=True)


# --- images --------------------------------------------------------------------------------------------------------


def mend_images(found: Examination, shard: int, name: str, originals: Originals, lost: Lost) -> None:
    """Replace a shard of one array whole: rows that can be read as they are, the others made again.

    Args:
        lost: gets the rows that could not be made again; they leave the shard and its record.

    Raises:
        NeedsSource: rows must be made again and there is no source.
    """
    root, record = found.root, found.records[shard]
    commit = _commit_with(found, name)
    if commit is None:  # a window that no kept commit has: it is converted again if it is ever wanted again
        del record["arrays"][name]
        write_atomic(layout.record_file(root, shard), layout.encode_record(record))
        return
    array, document = record["arrays"][name], document_of(found, name)
    path = layout.images_file(root, spec_of(name), shard)
    content = path.read_bytes() if path.exists() else b""
    made = _make_again(found, shard, name, _bad_rows(content, array["digests"], document), originals)
    gone = {row for row, image in made.items() if image is None}
    array["digests"] = [None if row in gone else digest for row, digest in enumerate(array["digests"])]
    _write_images(found, shard, name, content, {row: image for row, image in made.items() if image is not None})
    lost.rows |= {shard * len(array["digests"]) + row for row in gone}
    lost.slots |= {(shard, record["slices"]["slot"][row]) for row in gone}


def _commit_with(found: Examination, name: str) -> Commit | None:
    path = spec_of(name).images_path
    return next((commit for commit in found.commits.values() if path in commit.arrays), None)


def _bad_rows(content: bytes, digests: list[str | None], document: Any) -> set[int]:
    try:
        return set(row_problems(content, digests, document))
    except ValueError:
        return {row for row, digest in enumerate(digests) if digest}


def _make_again(
    found: Examination, shard: int, name: str, rows: set[int], originals: Originals
) -> dict[int, np.ndarray | None]:
    """Row within the shard -> its image made from the source, None where it does not come out as recorded."""
    record = found.records[shard]
    slices, files, digests = record["slices"], record["files"], record["arrays"][name]["digests"]
    row_of = {(slices["slot"][row], slices["frame"][row]): row for row in rows}
    made: dict[int, np.ndarray | None] = dict.fromkeys(rows)
    paths = _paths(found, shard)
    for slot in sorted({slot for slot, _ in row_of}):
        data = originals.read(paths.get(slot, files["path"][slot]), files["digest"][slot])
        frames = (files["first"][slot], files["stop"][slot]) if files["stop"][slot] else None
        for one in _slices(data, record["reading"], found, originals, frames):
            row = row_of.get((slot, one.record.frame)) if isinstance(one, Slice) else None
            if isinstance(one, Slice) and row is not None:
                image = _render(found, one, name)
                made[row] = image if xxhash.xxh3_128_hexdigest(image.data) == digests[row] else None
    return made


def _paths(found: Examination, shard: int) -> dict[int, str]:
    """Slot -> the path of its file, as the newest commit knows it."""
    paths: dict[int, str] = {}
    for ledger in found.ledgers.values():
        paths = ledger.live_slots().get(shard, {}) | paths
    return paths


def _slices(
    data: memoryview | None, fingerprint: str, found: Examination, originals: Originals, frames: tuple[int, int] | None
) -> Iterable[Slice | Reject]:
    """Decode a file in the way of the commits with this fingerprint of reading."""
    if data is None:
        return ()
    [commit, *_] = [commit for commit in found.commits.values() if commit.private["reading"] == fingerprint]
    reading = Reading(**commit.private["reading_settings"])
    key = None if reading.patient_ids == "keep" else originals.patient_key or b"a patient id that is not kept"
    return read_slices(data, reading, key, frames)


def _render(found: Examination, one: Slice, name: str) -> np.ndarray:
    commit, side, record = _commit_with(found, name), spec_of(name).size_px, one.record
    assert commit
    windows = tuple(Window(**window) for window in commit.attributes["windows"])
    image, sums = np.empty((len(windows), side, side), np.uint8), np.empty((len(windows), 2), np.uint64)
    kernel.render(one.stored, record.slope, record.intercept, one.padding, windows, [image], [sums])
    return image


def _write_images(found: Examination, shard: int, name: str, old: bytes, made: Mapping[int, np.ndarray]) -> None:
    """Publish the shard of `made` and of the other recorded rows of `old`, its sums, and the record."""
    root, record, spec = found.root, found.records[shard], spec_of(name)
    array, document = record["arrays"][name], document_of(found, name)
    files = [layout.images_file(root, spec, shard), layout.sums_file(root, spec, shard)]
    codec, rows = Codec.of(document), len(array["digests"])
    done = layout.record_file(root, shard)
    with Drafts(root) as drafts:
        sums = np.zeros((rows, document["shape"][1], 2), np.uint64)
        with ShardWriter(drafts.begin(files[0]), rows, codec) as writer:
            for row, image in _all_rows(old, made, array["digests"], document):
                writer.add(row, image)
                sums[row] = sums_of(image)
            array["bytes"] = writer.finish()
        drafts.begin(files[1]).write_bytes(encode_sums(sums))
        drafts.begin(done).write_bytes(layout.encode_record(record))
        drafts.publish(files, last=done)


def _all_rows(
    old: bytes, made: Mapping[int, np.ndarray], digests: list[str | None], document: Any
) -> Iterator[tuple[int, np.ndarray]]:
    yield from made.items()
    if len(made) < sum(map(bool, digests)):
        for row, image, _ in read_shard(old, tuple(document["shape"][1:]), len(digests), Codec.of(document)):
            if image is not None and digests[row] and row not in made:
                yield row, image


def sums_of(image: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of the grey levels of a (C, S, S) uint8 image by channel: (C, 2) uint64."""
    flat = image.reshape(len(image), -1).astype(np.uint64)
    return np.stack([flat.sum(1), (flat * flat).sum(1)], 1)


def mend_sums(found: Examination, shard: int, name: str) -> None:
    """Write the sums of a shard again from its images, which are whole."""
    document, spec = document_of(found, name), spec_of(name)
    digests = found.records[shard]["arrays"][name]["digests"]
    sums = np.zeros((len(digests), document["shape"][1], 2), np.uint64)
    content = layout.images_file(found.root, spec, shard).read_bytes()
    for row, image, _ in read_shard(content, tuple(document["shape"][1:]), len(digests), Codec.of(document)):
        assert image is not None
        sums[row] = sums_of(image)
    write_atomic(layout.sums_file(found.root, spec, shard), encode_sums(sums))


# --- records -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """What the ledgers know of the file in a slot."""

    path: str
    size: int
    mtime_ns: int
    digest: str
    frames: tuple[int, int] | None


def rebuild_record(
    found: Examination, shard: int, originals: Originals, rows_of: Mapping[tuple[str, int], int], lost: Lost
) -> None:
    """Make a done-record again from the ledgers, the tables, the stored images and the source.

    Its digests are those of the images that the source gives; `mend_images` then compares the stored ones with them.

    Args:
        rows_of: (SOP Instance UID, frame) -> row within the shard, as the tables say.
        lost: gets the rows and slots of files that are gone or have changed.

    Raises:
        NeedsSource: there is no source.
    """
    commit = next(found.commits[commit] for commit, ledger in found.ledgers.items() if shard in ledger.live_slots())
    _require_key(found.root, commit, originals)
    rows_per_shard = commit.attributes["rows_per_shard"]
    names = _arrays_with(found, shard)
    files = _files_of(found, shard, rows_per_shard)
    record = _Rebuilt(commit.private["reading"], names, rows_per_shard, _stored_digests(found, shard, names))
    for slot in range(max(files) + 1):
        file = files.get(slot)
        data = originals.read(file.path, file.digest) if file else None
        record.add_file(file, known=data is not None or (file is not None and file.digest == UNREAD))
        if file and data is None and file.digest != UNREAD:
            lost.slots.add((shard, slot))
        for one in _slices(data, record.reading, found, originals, file.frames if file else None):
            if isinstance(one, Reject):
                record.add_reject(slot, one)
            else:
                digests = {name: xxhash.xxh3_128_hexdigest(_render(found, one, name).data) for name in names}
                record.add_slice(
                    slot, one.record, digests, rows_of.get((one.record.sop_instance_uid, one.record.frame))
                )
    found.records[shard] = record.content(shard)
    lost.rows |= {shard * rows_per_shard + row for row in rows_of.values() if row not in record.rows}
    write_atomic(layout.record_file(found.root, shard), layout.encode_record(found.records[shard]))


def _require_key(root: Path, commit: Commit, originals: Originals) -> None:
    wanted = commit.private["patient_key"]
    if wanted and (originals.patient_key is None or key_digest(originals.patient_key) != wanted):
        raise CacheError(f"{root}: a done-record must be made again: give the cache's key with --patient-key")


def _arrays_with(found: Examination, shard: int) -> list[str]:
    """Names of the arrays of the commits that have something in this shard."""
    paths = [
        path
        for commit_id, ledger in found.ledgers.items()
        if shard in ledger.live_slots()
        for path in found.commits[commit_id].arrays
    ]
    return list(dict.fromkeys(path.split("/")[1] for path in paths))


def _files_of(found: Examination, shard: int, rows_per_shard: int) -> dict[int, _File]:
    files: dict[int, _File] = {}
    for ledger in found.ledgers.values():
        line_of = {path: line for line, path in enumerate(ledger.paths)}
        for slot, path in ledger.live_slots().get(shard, {}).items():
            line = line_of[path]
            first = (shard - int(ledger.shards[line])) * rows_per_shard
            frames = (first, first + rows_per_shard) if ledger.parts[line] > 1 else None
            stamp = int(ledger.sizes[line]), int(ledger.mtimes_ns[line])
            files.setdefault(slot, _File(path, *stamp, digest_hex(ledger.digests[line]), frames))
    return files


def _stored_digests(found: Examination, shard: int, names: list[str]) -> dict[str, dict[int, str]]:
    """Array -> row within the shard -> digest of the stored image, where it can be read."""
    stored: dict[str, dict[int, str]] = {name: {} for name in names}
    for name in names:
        document, path = document_of(found, name), layout.images_file(found.root, spec_of(name), shard)
        rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
        with contextlib.suppress(FileNotFoundError, ValueError):
            for row, image, _ in read_shard(path.read_bytes(), tuple(document["shape"][1:]), rows, Codec.of(document)):
                if image is not None:
                    stored[name][row] = xxhash.xxh3_128_hexdigest(image.data)
    return stored


class _Rebuilt:
    """A done-record that is being made again; slots and rows that nothing names any more stay empty."""

    def __init__(self, reading: str, names: list[str], rows: int, stored: dict[str, dict[int, str]]) -> None:
        self.reading = reading
        self.rows: dict[int, tuple[int, SliceRecord]] = {}
        self._stored = stored
        self._files: dict[str, list[Any]] = {name: [] for name in FILE_FIELDS}
        self._rejects: dict[str, list[Any]] = {name: [] for name in REJECT_FIELDS}
        self._digests: dict[str, list[str | None]] = {name: [None] * rows for name in names}

    def add_file(self, file: _File | None, known: bool) -> None:
        first, stop = (file.frames if file else None) or (0, 0)
        stamp = (file.size, file.mtime_ns, file.digest) if file and known else (None, None, None)
        values = (file.path if file else "", "its record was damaged", *stamp, first, stop)
        for column, value in zip(self._files.values(), values, strict=True):
            column.append(value)

    def add_reject(self, slot: int, found: Reject) -> None:
        for column, value in zip(self._rejects.values(), (slot, found.frame, found.code, found.message), strict=True):
            column.append(value)

    def add_slice(self, slot: int, found: SliceRecord, digests: Mapping[str, str], row: int | None) -> None:
        """Put a slice where the tables have it; one that no table names, a duplicate, where its image is stored."""
        if row is None:
            after = range(max(self.rows, default=-1) + 1, len(next(iter(self._digests.values()))))
            row = next((row for row in after if self._is_stored(row, digests)), None)
        if row is not None:
            self.rows[row] = slot, found
            for name, digest in digests.items():
                self._digests[name][row] = digest

    def _is_stored(self, row: int, digests: Mapping[str, str]) -> bool:
        return any(self._stored[name].get(row) == digest for name, digest in digests.items())

    def content(self, shard: int) -> dict[str, Any]:
        """The record's content, as `convert` writes it."""
        slices: dict[str, list[Any]] = {name: [] for name in SLICE_FIELDS}
        for row in range(max(self.rows, default=-1) + 1):
            slot, record = self.rows.get(row, (-1, (None,) * len(SliceRecord._fields)))
            for column, value in zip(slices.values(), (slot, *record), strict=True):
                column.append(value)
        about = {"built": now(), "versions": library_versions()}
        arrays = {name: {"bytes": 0, "digests": digests, **about} for name, digests in self._digests.items()}
        rest = {"files": self._files, "slices": slices, "rejects": self._rejects, "arrays": arrays}
        return {"shard": shard, "reading": self.reading, **about, **rest}

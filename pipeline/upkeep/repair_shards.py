"""Repair a shard by running its task again, and rebuild a lost done-record from the tables and the source."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import xxhash

from pipeline.cache.commits import Commit
from pipeline.cache.done_records import encode_record, read_record, write_record
from pipeline.cache.files import read_regular
from pipeline.cache.ledger import UNREAD, digest_hex
from pipeline.cache.paths import Cache
from pipeline.cache.shard_record import FileLine, PlacedSlice, RejectLine, ShardRecord
from pipeline.cache.shards import Codec
from pipeline.dicom.read import read_slices
from pipeline.dicom.records import Reject, SliceRecord, Unit
from pipeline.engine.context import Context
from pipeline.engine.convert import build_shard
from pipeline.engine.versions import library_versions, now
from pipeline.errors import CacheError
from pipeline.planning.catalog import Reading
from pipeline.planning.jobs import ShardJob
from pipeline.planning.stages import ArraySpec
from pipeline.source.files import Buffer
from pipeline.source.sources import Source
from pipeline.tables.patients import key_digest
from pipeline.upkeep.examination import Examination
from pipeline.upkeep.verify_shards import document_of, row_problems

UNKNOWN_FILE = FileLine("", "its record was damaged", None, None, None, 0, 0)
PLACEHOLDER_KEY = b"a patient id that is not kept"  # used where the hashed patient ids are discarded


@dataclass(slots=True)
class Lost:
    """Rows and files that could not be recovered.

    Attributes:
        rows: rows of the arrays.
        slots: (shard, slot) of the files; a file that gave only rejects has no row.
    """

    rows: set[int] = field(default_factory=set)
    slots: set[tuple[int, int]] = field(default_factory=set)


class NeedsSource(Exception):
    """Something can only be repaired from the DICOM files, which were not given."""


@dataclass(frozen=True, slots=True)
class Originals:
    """What lost images are rebuilt from.

    Attributes:
        source: the DICOM files, None if they were not given.
        patient_key: the key that patient ids are hashed with, None if there is none.
        token: token of the lock that the repair holds.
    """

    source: Source | None
    patient_key: bytes | None
    token: str

    def read(self, path: str, digest: str) -> memoryview | None:
        """Return the content of a file, None if it cannot be read or its xxh3-128 is not `digest`.

        Raises:
            NeedsSource: no source was given.
        """
        try:
            data, _ = self.require().read(path, Buffer())
        except OSError:
            return None
        return data if xxhash.xxh3_128_hexdigest(data) == digest else None

    def require(self) -> Source:
        """Return the source.

        Raises:
            NeedsSource: no source was given.
        """
        if self.source is None:
            raise NeedsSource("some of it must be rebuilt from the DICOM files: give --src")
        return self.source


# --- images --------------------------------------------------------------------------------------------------------


def rebuild_array(found: Examination, shard: int, name: str, originals: Originals, lost: Lost) -> None:
    """Rebuild one array's images and sums of a shard: intact rows are kept, the others come from the source.

    An array that no commit has is removed from the shard's record instead.

    Args:
        lost: receives the rows that could not be rebuilt; they are removed from the shard and its record.

    Raises:
        NeedsSource: rows must be rebuilt and no source was given.
    """
    record, spec = found.records[shard], ArraySpec.of_name(name)
    commit = _commit_with(found, spec)
    if commit is None:  # a build that needs this array converts it again
        arrays = {other: array for other, array in record.arrays.items() if other != name}
        found.records[shard] = dataclasses.replace(record, arrays=arrays)
        write_record(found.cache, found.records[shard])
        return
    _write_if_damaged(found, record)
    bad = _bad_rows(found, record, spec)
    if bad:
        originals.require()
    kept = frozenset(row for row, digest in enumerate(_digests(record, name)) if digest and row not in bad)
    dropped: set[int] = set()
    while True:
        units = _units(found, record, {placed.slot for row in bad if (placed := record.slices[row])} - dropped)
        job = ShardJob(shard, units, (spec,), adds_arrays=True, kept=kept)
        result = build_shard(_context(found, commit, record, spec, originals), job)
        missed = {unit.slot for unit in units if unit.path in {*result.vanished, *result.changed}}
        if not missed:
            break
        dropped |= missed
    rebuilt = read_record(found.cache, shard)
    assert rebuilt
    found.records[shard] = rebuilt
    gone = {row for row in bad if rebuilt.arrays[name].digests[row] is None}
    lost.rows |= {shard * len(rebuilt.arrays[name].digests) + row for row in gone}
    lost.slots |= {(shard, placed.slot) for row in gone if (placed := record.slices[row])}


def _write_if_damaged(found: Examination, record: ShardRecord) -> None:
    """Restore the file of a record if it is lost or damaged: the task that rebuilds an array reads it."""
    wanted = encode_record(record)
    file = found.cache.record_file(record.shard)
    if not file.is_file() or file.read_bytes() != wanted:
        write_record(found.cache, record)


def _commit_with(found: Examination, spec: ArraySpec) -> Commit | None:
    return next((commit for commit in found.commits.values() if spec in commit.terms.arrays), None)


def _digests(record: ShardRecord, name: str) -> tuple[str | None, ...]:
    return record.arrays[name].digests if name in record.arrays else ()


def _bad_rows(found: Examination, record: ShardRecord, spec: ArraySpec) -> set[int]:
    """Return the rows to rebuild: those with a damaged image, or all if the record does not list the array."""
    if spec.name not in record.arrays:
        return {row for row, placed in enumerate(record.slices) if placed}
    digests = record.arrays[spec.name].digests
    array = document_of(found, spec)
    assert array
    try:
        content = read_regular(found.cache.images_file(spec, record.shard))
        return set(row_problems(content, digests, array))
    except (ValueError, OSError):
        return {row for row, digest in enumerate(digests) if digest}


def _units(found: Examination, record: ShardRecord, slots: set[int]) -> tuple[Unit, ...]:
    """Return the units of these slots, with the paths of the newest commit that has them."""
    paths: dict[int, str] = {}
    for ledger in found.ledgers.values():
        paths = ledger.live_slots().get(record.shard, {}) | paths
    return tuple(Unit(slot, paths.get(slot, record.files[slot].path)) for slot in sorted(slots))


def _context(found: Examination, commit: Commit, record: ShardRecord, spec: ArraySpec, originals: Originals) -> Context:
    array = document_of(found, spec)
    assert array
    reading = _reading(found, record.reading)
    return Context(
        source=originals.source,  # type: ignore[arg-type]  # without a source, no unit is read
        cache=found.cache,
        token=originals.token,
        reading=reading,
        reading_fingerprint=record.reading,
        patient_key=None if reading.patient_ids == "keep" else originals.patient_key or PLACEHOLDER_KEY,
        windows=commit.terms.windows,
        rows_per_shard=array.rows_per_shard,
        codecs={spec.name: Codec.of(array)},
    )


def _reading(found: Examination, fingerprint: str) -> Reading:
    """Return the reading settings with this fingerprint."""
    [commit, *_] = [commit for commit in found.commits.values() if commit.private.reading == fingerprint]
    return Reading(**commit.private.reading_settings)


# --- records -------------------------------------------------------------------------------------------------------


def rebuild_record(
    found: Examination, shard: int, originals: Originals, rows_of: Mapping[tuple[str, int], int], lost: Lost
) -> list[str]:
    """Rebuild a done-record whose file and copy are lost, from the ledgers, the tables and the source.

    The new record lists no arrays; `rebuild_array` adds them.

    Args:
        rows_of: (SOP Instance UID, frame) -> row within the shard, from the tables.
        lost: receives the rows and slots of files that are gone or have changed.

    Returns:
        names of the arrays to rebuild.

    Raises:
        NeedsSource: no source was given.
        CacheError: the cache's patient key was not given.
    """
    commit = next(found.commits[commit] for commit, ledger in found.ledgers.items() if shard in ledger.live_slots())
    _require_key(found.cache, commit, originals)
    rows_per_shard, key = commit.terms.rows_per_shard, originals.patient_key or PLACEHOLDER_KEY
    reading = _reading(found, commit.private.reading)
    known = _known_files(found, shard, rows_per_shard)
    files: list[FileLine] = []
    slices: dict[int, PlacedSlice] = {}
    rejects: list[RejectLine] = []
    free = iter(sorted(set(range(rows_per_shard)) - set(rows_of.values())))
    for slot in range(max(known) + 1):
        file = known.get(slot, UNKNOWN_FILE)
        unread = file.digest == UNREAD
        data = originals.read(file.path, file.digest) if file.digest and not unread else None
        if data is None and file.digest and not unread:
            lost.slots.add((shard, slot))
        files.append(file if data is not None or unread else file._replace(size=None, mtime_ns=None, digest=None))
        rejects += [RejectLine(slot, 0, "unreadable", "the file cannot be read")] if unread else []
        frames = (file.first, file.stop) if file.stop else None
        hash_key = None if reading.patient_ids == "keep" else key
        for read in read_slices(data, reading, hash_key, frames) if data is not None else ():
            if isinstance(read, Reject):
                rejects.append(RejectLine(slot, read.frame, read.code, read.message))
            else:
                slices[_row_of(read.record, rows_of, free)] = PlacedSlice(slot, read.record)
    lost.rows |= {shard * rows_per_shard + row for row in rows_of.values() if row not in slices}
    placed = tuple(slices.get(row) for row in range(max(slices, default=-1) + 1))
    about = (commit.private.reading, now(), library_versions())
    found.records[shard] = ShardRecord(shard, *about, tuple(files), placed, tuple(rejects), {})
    write_record(found.cache, found.records[shard])
    return _arrays_with(found, shard)


def _row_of(record: SliceRecord, rows_of: Mapping[tuple[str, int], int], free: Iterator[int]) -> int:
    """Return the row of a slice in the tables; a slice that is in no table, a duplicate, takes a free row."""
    row = rows_of.get((record.sop_instance_uid, record.frame))
    return next(free) if row is None else row


def _require_key(cache: Cache, commit: Commit, originals: Originals) -> None:
    """Raise a CacheError unless the patient key that the cache was built with was given."""
    wanted = commit.private.patient_key
    if wanted and (originals.patient_key is None or key_digest(originals.patient_key) != wanted):
        raise CacheError(f"{cache}: a done-record must be rebuilt: give the cache's key with --patient-key")


def _arrays_with(found: Examination, shard: int) -> list[str]:
    """Return the names of the arrays of all commits that use this shard."""
    named = [
        spec.name
        for commit_id, ledger in found.ledgers.items()
        if shard in ledger.live_slots()
        for spec in found.commits[commit_id].terms.arrays
    ]
    return list(dict.fromkeys(named))


def _known_files(found: Examination, shard: int, rows_per_shard: int) -> dict[int, FileLine]:
    """Return what the ledgers record of the file in each slot; the newest ledger takes precedence."""
    files: dict[int, FileLine] = {}
    for ledger in found.ledgers.values():
        line_of = ledger.index()
        for slot, path in ledger.live_slots().get(shard, {}).items():
            line = line_of[path]
            first = (shard - int(ledger.shards[line])) * rows_per_shard
            frames = (first, first + rows_per_shard) if ledger.parts[line] > 1 else (0, 0)
            stamp = int(ledger.sizes[line]), int(ledger.mtimes_ns[line]), digest_hex(ledger.digests[line])
            files.setdefault(slot, FileLine(path, UNKNOWN_FILE.why, *stamp, *frames))
    return files

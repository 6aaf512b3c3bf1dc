"""Repair a shard by running its task again into its place, and a lost record from tables and source."""

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

NOTHING = FileLine("", "its record was damaged", None, None, None, 0, 0)
NO_KEY = b"a patient id that is not kept"


@dataclass(slots=True)
class Lost:
    """What could not be recovered.

    Attributes:
        rows: of the arrays.
        slots: (shard, slot) of the files that they, or rejects, came from.
    """

    rows: set[int] = field(default_factory=set)
    slots: set[tuple[int, int]] = field(default_factory=set)


class NeedsSource(Exception):
    """Something can only be repaired from the DICOM files, which were not given."""


@dataclass(frozen=True, slots=True)
class Originals:
    """Where lost images can be made again from, and by whom.

    Attributes:
        source: the DICOM files, None where they were not given.
        patient_key: of the user, None where there is none.
        token: of the lock that the repair holds.
    """

    source: Source | None
    patient_key: bytes | None
    token: str

    def read(self, path: str, digest: str) -> memoryview | None:
        """The content of a file, None where it is gone or has changed.

        Raises:
            NeedsSource: there is no source to read it from.
        """
        try:
            data, _ = self.require().read(path, Buffer())
        except OSError:
            return None
        return data if xxhash.xxh3_128_hexdigest(data) == digest else None

    def require(self) -> Source:
        """The source.

        Raises:
            NeedsSource: there is none.
        """
        if self.source is None:
            raise NeedsSource("some of it must be rebuilt from the DICOM files: give --src")
        return self.source


# --- images --------------------------------------------------------------------------------------------------------


def rebuild_array(found: Examination, shard: int, name: str, originals: Originals, lost: Lost) -> None:
    """Make one array's part of a shard, and its sums, again: rows that are whole stay, the others come from the source.

    Args:
        lost: gets the rows that could not be made again; they leave the shard and its record.

    Raises:
        NeedsSource: rows must be made again and there is no source.
    """
    record, spec = found.records[shard], ArraySpec.of_name(name)
    commit = _commit_with(found, spec)
    if commit is None:  # a window that no kept commit has: it is converted again if it is ever wanted again
        arrays = {other: array for other, array in record.arrays.items() if other != name}
        found.records[shard] = dataclasses.replace(record, arrays=arrays)
        write_record(found.cache, found.records[shard])
        return
    _write_whole(found, record)
    bad = _bad_rows(found, record, spec)
    if bad:
        originals.require()
    kept = frozenset(row for row, digest in enumerate(_digests(record, name)) if digest and row not in bad)
    dropped: set[int] = set()
    while True:
        units = _units(found, record, {placed.slot for row in bad if (placed := record.slices[row])} - dropped)
        job = ShardJob(shard, units, (spec,), again=True, kept=kept)
        result = build_shard(_context(found, commit, record, spec, originals), job)
        missed = {unit.slot for unit in units if unit.path in {*result.vanished, *result.changed}}
        if not missed:
            break
        dropped |= missed
    made = read_record(found.cache, shard)
    assert made
    found.records[shard] = made
    gone = {row for row in bad if made.arrays[name].digests[row] is None}
    lost.rows |= {shard * len(made.arrays[name].digests) + row for row in gone}
    lost.slots |= {(shard, placed.slot) for row in gone if (placed := record.slices[row])}


def _write_whole(found: Examination, record: ShardRecord) -> None:
    """Write a record whose file is lost: the task that rebuilds an array reads it."""
    wanted = encode_record(record)
    file = found.cache.record_file(record.shard)
    if not file.is_file() or file.read_bytes() != wanted:
        write_record(found.cache, record)


def _commit_with(found: Examination, spec: ArraySpec) -> Commit | None:
    return next((commit for commit in found.commits.values() if spec in commit.terms.arrays), None)


def _digests(record: ShardRecord, name: str) -> tuple[str | None, ...]:
    return record.arrays[name].digests if name in record.arrays else ()


def _bad_rows(found: Examination, record: ShardRecord, spec: ArraySpec) -> set[int]:
    """The rows that must be made again: recorded and not whole, or of an array that the record does not know yet."""
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
    """What to read, under the paths that the newest commit knows."""
    paths: dict[int, str] = {}
    for ledger in found.ledgers.values():
        paths = ledger.live_slots().get(record.shard, {}) | paths
    return tuple(Unit(slot, paths.get(slot, record.files[slot].path)) for slot in sorted(slots))


def _context(found: Examination, commit: Commit, record: ShardRecord, spec: ArraySpec, originals: Originals) -> Context:
    array = document_of(found, spec)
    assert array
    reading = _reading(found, record.reading)
    return Context(
        source=originals.source,  # type: ignore[arg-type]  # where there is none, no unit is read
        cache=found.cache,
        token=originals.token,
        reading=reading,
        reading_fingerprint=record.reading,
        patient_key=None if reading.patient_ids == "keep" else originals.patient_key or NO_KEY,
        windows=commit.terms.windows,
        rows_per_shard=array.rows_per_shard,
        codecs={spec.name: Codec.of(array)},
    )


def _reading(found: Examination, fingerprint: str) -> Reading:
    """The settings of reading that have this fingerprint."""
    [commit, *_] = [commit for commit in found.commits.values() if commit.private.reading == fingerprint]
    return Reading(**commit.private.reading_settings)


# --- records -------------------------------------------------------------------------------------------------------


def rebuild_record(
    found: Examination, shard: int, originals: Originals, rows_of: Mapping[tuple[str, int], int], lost: Lost
) -> list[str]:
    """Make a done-record that is lost with its copy again, from the ledgers, the tables and the source.

    Its arrays are not known then; `rebuild_array` makes each of them again.

    Args:
        rows_of: (SOP Instance UID, frame) -> row within the shard, as the tables say.
        lost: gets the rows and slots of files that are gone or have changed.

    Returns:
        names of the arrays that the record must come to know.

    Raises:
        NeedsSource: there is no source.
    """
    commit = next(found.commits[commit] for commit, ledger in found.ledgers.items() if shard in ledger.live_slots())
    _require_key(found.cache, commit, originals)
    rows_per_shard, key = commit.terms.rows_per_shard, originals.patient_key or NO_KEY
    reading = _reading(found, commit.private.reading)
    known = _known_files(found, shard, rows_per_shard)
    files: list[FileLine] = []
    slices: dict[int, PlacedSlice] = {}
    rejects: list[RejectLine] = []
    free = iter(sorted(set(range(rows_per_shard)) - set(rows_of.values())))
    for slot in range(max(known) + 1):
        file = known.get(slot, NOTHING)
        unread = file.digest == UNREAD
        data = originals.read(file.path, file.digest) if file.digest and not unread else None
        if data is None and file.digest and not unread:
            lost.slots.add((shard, slot))
        files.append(file if data is not None or unread else file._replace(size=None, mtime_ns=None, digest=None))
        rejects += [RejectLine(slot, 0, "unreadable", "the file cannot be read")] if unread else []
        frames = (file.first, file.stop) if file.stop else None
        key_of = None if reading.patient_ids == "keep" else key
        for one in read_slices(data, reading, key_of, frames) if data is not None else ():
            if isinstance(one, Reject):
                rejects.append(RejectLine(slot, one.frame, one.code, one.message))
            else:
                slices[_row_of(one.record, rows_of, free)] = PlacedSlice(slot, one.record)
    lost.rows |= {shard * rows_per_shard + row for row in rows_of.values() if row not in slices}
    placed = tuple(slices.get(row) for row in range(max(slices, default=-1) + 1))
    about = (commit.private.reading, now(), library_versions())
    found.records[shard] = ShardRecord(shard, *about, tuple(files), placed, tuple(rejects), {})
    write_record(found.cache, found.records[shard])
    return _arrays_with(found, shard)


def _row_of(record: SliceRecord, rows_of: Mapping[tuple[str, int], int], free: Iterator[int]) -> int:
    """Where the tables have a slice; one that no table names, a duplicate, takes a row that is free."""
    row = rows_of.get((record.sop_instance_uid, record.frame))
    return next(free) if row is None else row


def _require_key(cache: Cache, commit: Commit, originals: Originals) -> None:
    wanted = commit.private.patient_key
    if wanted and (originals.patient_key is None or key_digest(originals.patient_key) != wanted):
        raise CacheError(f"{cache}: a done-record must be rebuilt: give the cache's key with --patient-key")


def _arrays_with(found: Examination, shard: int) -> list[str]:
    """Names of the arrays of the commits that have something in this shard."""
    named = [
        spec.name
        for commit_id, ledger in found.ledgers.items()
        if shard in ledger.live_slots()
        for spec in found.commits[commit_id].terms.arrays
    ]
    return list(dict.fromkeys(named))


def _known_files(found: Examination, shard: int, rows_per_shard: int) -> dict[int, FileLine]:
    """Slot -> what the ledgers know of its file, the newest first."""
    files: dict[int, FileLine] = {}
    for ledger in found.ledgers.values():
        line_of = ledger.index()
        for slot, path in ledger.live_slots().get(shard, {}).items():
            line = line_of[path]
            first = (shard - int(ledger.shards[line])) * rows_per_shard
            frames = (first, first + rows_per_shard) if ledger.parts[line] > 1 else (0, 0)
            stamp = int(ledger.sizes[line]), int(ledger.mtimes_ns[line]), digest_hex(ledger.digests[line])
            files.setdefault(slot, FileLine(path, NOTHING.why, *stamp, *frames))
    return files

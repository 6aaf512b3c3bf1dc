"""Compare the source with the cache, and plan a build; nothing is written."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline import system
from pipeline.cache import commits
from pipeline.cache.done_records import read_record
from pipeline.cache.head import current_commit
from pipeline.cache.ledger import Entry, Ledger, empty_ledger, ledger_of, merge
from pipeline.cache.paths import Cache
from pipeline.cache.pending import first_free_shard, is_committed, read_pending
from pipeline.cache.shard_record import ShardRecord
from pipeline.dicom.records import Unit
from pipeline.errors import SourceError
from pipeline.planning import changes, plan
from pipeline.planning.changes import Content, Resolved
from pipeline.planning.estimate import estimate
from pipeline.planning.known import Known
from pipeline.planning.plan import Plan
from pipeline.planning.settings import Settings
from pipeline.planning.stages import Fingerprints, fingerprints
from pipeline.source.contents import digest_files
from pipeline.source.folder import Folder
from pipeline.source.listing import Listing
from pipeline.source.sources import Source, open_source


@dataclass(frozen=True, slots=True)
class Survey:
    """The state of source and cache before a build, and its plan.

    Attributes:
        head: the current commit; None before the first.
        wanted: fingerprints that the build must produce.
    """

    source: Source
    listing: Listing
    head: commits.Commit | None
    wanted: Fingerprints
    plan: Plan


def refuse_cache_in_source(cache: Cache, src: str) -> None:
    """Raise a SourceError if the cache is inside its source, as each build would read the files of the previous one."""
    src = src.removeprefix("file://")
    if "://" not in src and Path(src).resolve() in cache.root.resolve().parents:
        raise SourceError(f"{cache}: --out lies inside --src {src}; give a folder outside of it")


def survey(
    cache: Cache, settings: Settings, *, check_content: bool = False, retry_rejected: bool = False, running: str = ""
) -> Survey:
    """Scan the source, compare it with what the cache knows, and plan.

    Args:
        cache: the cache, which may not exist yet.
        settings: settings of the build.
        check_content: whether to ignore times and compare contents.
        retry_rejected: whether to read failed files again, for example after a decoder was installed.
        running: description of a running build, from `lock.builder_at_work`, if the plan is only printed.

    Raises:
        SourceError, CacheError: the source or the cache cannot be used.
    """
    head = current_commit(cache)
    wanted = fingerprints(settings)
    refuse_cache_in_source(cache, settings.src)
    source = open_source(settings.src)
    if isinstance(source, Folder):
        source = replace(source, cache_root=str(cache.root.resolve()))
    listing = source.scan()
    known = replace(_known(cache, head, wanted), running=running)
    if head and retry_rejected:
        known = _forget_failed(known, _failed_paths(cache, head) & set(listing.paths))
    difference = changes.compare(listing, known.ledger, check_content=check_content)
    lines = set(difference.lines_to_read())
    reading_changed = known.reading not in (None, wanted.reading)
    before = changes.compare(listing, known.committed) if reading_changed else difference
    lines |= set(before.maybe_renamed.tolist())
    contents = _contents(source, listing, sorted(lines))
    resolved = changes.resolve(listing, known.ledger, difference, contents)
    if reading_changed:
        _, gone = changes.match_renamed(known.committed, before, contents)
        resolved = replace(resolved, vanished=[known.committed.paths[line] for line in gone])
    resolved = _without_uncommitted(resolved, known.committed)
    compared = tuple(listing.paths[line] for line in sorted(lines))
    made = plan.make(listing, known, resolved, wanted, settings.layout.rows_per_shard)
    notes = [f"kept: {what}" for what in settings.kept]
    if made.jobs:
        notes.insert(0, estimate(made.jobs, len(settings.windows)).as_line(system.cores()))
    return Survey(source, listing, head, wanted, replace(made, notes=tuple(notes), compared=compared))


def _without_uncommitted(resolved: Resolved, committed: Ledger) -> Resolved:
    """Do not report files as vanished that are in no commit."""
    if not resolved.vanished:
        return resolved
    paths = set(committed.paths)
    return replace(resolved, vanished=[path for path in resolved.vanished if path in paths])


def _contents(source: Source, listing: Listing, lines: Iterable[int]) -> dict[int, Content]:
    of_path = {listing.paths[line]: line for line in lines}
    return {
        of_path[path]: Content(size, mtime_ns, (int(digest[:16], 16), int(digest[16:], 16)))
        for path, size, mtime_ns, digest in digest_files(source, list(of_path))
    }


def _known(cache: Cache, head: commits.Commit | None, wanted: Fingerprints) -> Known:
    """Return the state of the cache: its current commit, and the work of a killed build with the same reading."""
    pending = read_pending(cache)
    next_shard = first_free_shard(cache, head, pending)
    if pending and (pending.reading != wanted.reading or is_committed(pending, head)):
        pending = None
    planned = pending.shards if pending else {}
    done = {shard: record for shard in planned if (record := read_record(cache, shard))}
    committed = commits.read_ledger(cache, head.id) if head else empty_ledger()
    same_reading = head is not None and head.private.reading == wanted.reading
    arrays = {path.split("/")[1] for path in head.arrays} if head and same_reading else set()
    finished = _finished_files(planned, done)
    ledger = merge(committed if same_reading else empty_ledger(), finished)
    commit_has_all = {spec.name for spec in wanted.arrays} <= arrays
    return Known(
        committed=committed,
        reading=head.private.reading if head else None,
        table=head.private.table if head else None,
        committed_arrays=frozenset(arrays),
        ledger=ledger,
        arrays=_arrays_of(cache, finished if commit_has_all else ledger),
        pending=planned,
        done=frozenset(done),
        next_shard=next_shard,
        identified=head is None or bool(head.attributes.cache),
    )


def _failed_paths(cache: Cache, head: commits.Commit) -> set[str]:
    """Return the paths of a commit's rejects that are failures, except conflicting duplicates."""
    from pipeline.tables.tables import REJECTS

    text = commits.read_rejects(cache, head).decode("utf-8", "surrogateescape")
    rejects = [(line["path"], line["code"]) for line in csv.DictReader(io.StringIO(text, newline=""))]
    return {path for path, code in rejects if REJECTS[code][0] == "failed" and code != "duplicate_conflict"}


def _forget_failed(known: Known, failed: set[str]) -> Known:
    """Return the state as if the failed files had never been read."""
    lines = np.array([line for line, path in enumerate(known.ledger.paths) if path not in failed], np.int64)
    return replace(known, ledger=known.ledger.take(lines), retried=frozenset(failed))


def _finished_files(planned: Mapping[int, tuple[Unit, ...]], done: Mapping[int, ShardRecord]) -> Ledger:
    """Return the files whose shards a killed build has all finished."""
    unfinished = {unit.path for shard, units in planned.items() if shard not in done for unit in units}
    return ledger_of([entry for entry in entries_of(done) if entry.path not in unfinished])


def _arrays_of(cache: Cache, ledger: Ledger) -> dict[int, frozenset[str]]:
    """Return shard -> names of the arrays that, by its record, have all slices of the ledger's files in it.

    A killed build may have converted fewer of a shard's files than are wanted now.
    """
    found = {}
    for shard, slots in ledger.live_slots().items():
        record = read_record(cache, shard)
        rows = record.rows_of(slots) if record else []
        arrays = record.arrays if record else {}
        found[shard] = frozenset(name for name, array in arrays.items() if all(array.digests[row] for row in rows))
    return found


def entries_of(records: Mapping[int, ShardRecord]) -> list[Entry]:
    """Return the ledger entries of finished shards; a file that spans several shards becomes one entry."""
    entries: dict[str, Entry] = {}
    for shard, record in sorted(records.items()):
        for slot, file in enumerate(record.files):
            if file.digest is None or file.size is None or file.mtime_ns is None:
                continue
            begun = entries.get(file.path)
            if file.first == 0:
                entries[file.path] = Entry(file.path, file.size, file.mtime_ns, file.digest, shard, slot, 1)
            elif begun and begun.digest == file.digest and begun.shard + begun.parts == shard:
                entries[file.path] = replace(begun, parts=begun.parts + 1)
    return list(entries.values())

"""This file tells the story of a build: survey what is there, plan, run the tasks, commit."""

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import cache, plan
from pipeline.contents import digest_files
from pipeline.errors import CacheError, SourceError
from pipeline.files import sha256
from pipeline.ledger import Entry, Ledger, empty_ledger, ledger_of, merge
from pipeline.plan import Content, Known, Plan, ShardJob
from pipeline.settings import Settings, Workers
from pipeline.sources import Listing, Source, open_source
from pipeline.stages import ArraySpec, Fingerprints, fingerprints


@dataclass(frozen=True, slots=True)
class Survey:
    """What a build found before it did anything."""

    source: Source
    listing: Listing
    head: cache.Commit | None
    wanted: Fingerprints
    plan: Plan


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a build came to.

    Attributes:
        changed: whether there is a new commit.
    """

    commit: cache.Commit
    changed: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """What a build tells while it works: the plan, then each shard."""

    planned: Callable[[Plan], None]
    shard_done: Callable[[ShardJob, Any], None]
    stage: Callable[[str], None]


def survey(settings: Settings, root: Path, check_content: bool = False) -> Survey:
    """Scan the source, compare it with what the cache knows, and plan. Writes nothing.

    Raises:
        SourceError, CacheError: source or cache cannot be used.
    """
    head = cache.head(root)
    wanted = fingerprints(settings)
    source = open_source(settings.src)
    listing = source.scan()
    known = _known(root, head, wanted)
    usable = plan.usable(known, wanted)
    difference = plan.compare(listing, usable, check_content)
    contents = _contents(source, listing, difference.lines_to_read())
    settled = plan.settle(listing, usable, difference, contents)
    made = plan.make(listing, known, settled, wanted, settings.layout.rows_per_shard)
    return Survey(source, listing, head, wanted, made)


def build(
    settings: Settings,
    root: Path,
    workers: Workers,
    patient_key: bytes | None,
    labels: bytes,
    prune: bool,
    check_content: bool,
    progress: Progress,
) -> Outcome:
    """Bring the cache to what the settings and the source ask for.

    Args:
        labels: the content of the label file, b"" where there is none.
        prune: whether slices of files that are gone may leave.

    Raises:
        SourceError, CacheError: with the old commit intact and the work resumable.
    """
    with cache.lock(root) as token:
        found = survey(settings, root, check_content)
        progress.planned(found.plan)
        if found.head and not found.plan.commit:
            _note_touched(root, found)
            return Outcome(found.head, changed=False)
        _refuse_vanished(root, found, prune)
        table_labels = _parse_labels(settings, labels)
        cache.collect_partials(root)
        _check_space(root, settings, found.plan)
        try:
            entries = _convert(settings, root, found, token, workers, patient_key, progress)
            progress.stage("writing the tables and the commit")
            commit = _commit(settings, root, found, entries, table_labels)
        except OSError as error:
            raise _target_error(root, error) from error
        return Outcome(commit, changed=True)


# --- what is there -------------------------------------------------------------------------------------------------


def _known(root: Path, head: cache.Commit | None, wanted: Fingerprints) -> Known:
    """What the cache knows: the current commit, and what a killed build for the same reading has left."""
    pending = cache.read_pending(root)
    if pending and pending.reading != wanted.reading:
        pending = None
    reading = head.private["reading"] if head else None
    ledger = cache.read_ledger(root, head.id) if head else empty_ledger()
    if pending and reading != wanted.reading:
        reading, ledger, committed = wanted.reading, empty_ledger(), set[str]()
    else:
        committed = {path.split("/")[1] for path in head.arrays} if head else set()
    records = {shard: cache.read_record(root, shard) for shard in (pending.shards if pending else ())}
    done = {shard: record for shard, record in records.items() if record}
    arrays = {shard: frozenset(record["arrays"]) for shard, record in done.items()}
    if any(spec.name not in committed for spec in wanted.arrays):
        arrays |= _arrays_of(root, ledger)
    new = ledger_of(entries_of(done))
    ledger = merge(ledger, _lines_without(ledger, set(new.paths)), new)
    return Known(
        ledger=ledger,
        reading=reading,
        committed_arrays=frozenset(committed),
        table=head.private["table"] if head else None,
        arrays=arrays,
        unfinished={shard: units for shard, units in pending.shards.items() if shard not in done} if pending else {},
        next_shard=cache.next_shard(root),
        resumed=pending is not None,
    )


def _arrays_of(root: Path, ledger: Ledger) -> dict[int, frozenset[str]]:
    found = {}
    for shard in shards_of(ledger):
        record = cache.read_record(root, shard)
        found[shard] = frozenset(record["arrays"]) if record else frozenset()
    return found


def shards_of(ledger: Ledger) -> list[int]:
    """Every shard that holds something of the ledger, sorted."""
    first, parts = ledger.shards, ledger.parts
    reach = [first[parts > part] + part for part in range(int(parts.max(initial=0)))]
    return np.unique(np.concatenate(reach)).tolist() if reach else []


def _lines_without(ledger: Ledger, paths: set[str]) -> np.ndarray:
    return np.array([line for line, path in enumerate(ledger.paths) if path not in paths], np.int64)


def entries_of(records: Mapping[int, Mapping[str, Any]]) -> list[Entry]:
    """Ledger entries of finished shards; the parts of a file that runs over several shards become one entry."""
    entries: dict[str, Entry] = {}
    for shard, record in sorted(records.items()):
        files = record["files"]
        columns = zip(files["path"], files["size"], files["mtime_ns"], files["digest"], files["first"], strict=True)
        for slot, (path, size, mtime_ns, digest, first) in enumerate(columns):
            if digest is None:
                continue
            if first and path in entries:
                begun = entries[path]
                entries[path] = Entry(path, size, mtime_ns, digest, begun.shard, begun.slot, begun.parts + 1)
            else:
                entries[path] = Entry(path, size, mtime_ns, digest, shard, slot, 1)
    return list(entries.values())


def _contents(source: Source, listing: Listing, lines: list[int]) -> dict[int, Content]:
    of_path = {listing.paths[line]: line for line in lines}
    return {
        of_path[path]: Content(size, mtime_ns, (int(digest[:16], 16), int(digest[16:], 16)))
        for path, size, mtime_ns, digest in digest_files(source, list(of_path))
    }


# --- before anything is written ------------------------------------------------------------------------------------


def _note_touched(root: Path, found: Survey) -> None:
    """Nothing is to be built: keep new time stamps, so that the next scan believes them, and mend stale copies."""
    assert found.head
    if found.plan.settled.touched:
        cache.write_ledger(root, found.head.id, found.plan.settled.kept)
    cache.mend_copies(root, found.head)


def _refuse_vanished(root: Path, found: Survey, prune: bool) -> None:
    vanished = found.plan.settled.vanished
    if vanished and not prune and found.head:
        raise SourceError(
            f"{root}: {len(vanished):,} files that the cache was built from are gone, {vanished[0]} for one; "
            "bring them back, or run with --prune to let their slices leave"
        )


def _parse_labels(settings: Settings, content: bytes) -> Any:
    if settings.labels.filepath is None:
        return None
    from pipeline.labels import read_labels

    return read_labels(settings.labels, content, [klass.name for klass in settings.classes])


def _check_space(root: Path, settings: Settings, made: Plan) -> None:
    need = sum(
        cache.disk_need([spec.size_px for spec in job.arrays], len(settings.windows), len(job.units))
        for job in made.jobs
    )
    free = shutil.disk_usage(root).free
    if need > free:
        raise CacheError(
            f"{root}: {made.slices_expected:,} slices need about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "make room, or give another --out"
        )


def _target_error(root: Path, error: OSError) -> CacheError:
    what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return CacheError(f"{error.filename or root}: {what}; nothing is lost: mend it and run the same command again")


# --- shards --------------------------------------------------------------------------------------------------------


def _convert(
    settings: Settings,
    root: Path,
    found: Survey,
    token: str,
    workers: Workers,
    patient_key: bytes | None,
    progress: Progress,
) -> list[Entry]:
    """Run the plan's tasks, and further ones for files with more frames than fitted. Returns the new entries."""
    if not found.plan.jobs:
        return []
    context = make_context(settings, root, found, token, patient_key)
    pending = dict(found.plan.pending)
    jobs = found.plan.jobs
    while jobs:
        cache.write_pending(root, cache.Pending(found.wanted.reading, pending))
        handed_back = _run(context, jobs, workers, progress)
        more = plan.place_frames(handed_back, max(pending, default=-1) + 1, settings.layout.rows_per_shard)
        pending |= more
        jobs = tuple(ShardJob(shard, units, found.wanted.arrays) for shard, units in sorted(more.items()))
    records = {shard: _record(root, shard) for shard in pending}
    there = set(found.listing.paths)
    return [entry for entry in entries_of(records) if entry.path in there]


def make_context(settings: Settings, root: Path, found: Survey, token: str, patient_key: bytes | None) -> Any:
    """Put together what every task of the build needs: a `convert.Context`."""
    from pipeline.convert import Context

    return Context(
        source=found.source,
        root=root,
        token=token,
        reading=settings.reading,
        reading_fingerprint=found.wanted.reading,
        patient_key=patient_key,
        windows=settings.windows,
        rows_per_shard=settings.layout.rows_per_shard,
        codecs={spec.name: _codec(root, spec, settings) for spec in found.wanted.arrays},
    )


def _codec(root: Path, spec: ArraySpec, settings: Settings) -> Any:
    """The compressor of an array: that of the array on disk, for a new one the catalog's."""
    from pipeline.shards import Codec

    existing = cache.array_metadata(root, spec.images_path)
    return Codec.of(existing) if existing else Codec(settings.layout.compression, settings.layout.compression_level)


def _run(context: Any, jobs: Iterable[ShardJob], workers: Workers, progress: Progress) -> list[tuple[str, int]]:
    from pipeline.engine import run_jobs

    of_shard = {job.shard: job for job in jobs}
    handed_back: list[tuple[str, int]] = []
    vanished: list[str] = []
    changed: list[str] = []
    for result in run_jobs(context, list(of_shard.values()), workers):
        progress.shard_done(of_shard[result.shard], result)
        handed_back += result.handed_back
        vanished += result.vanished
        changed += result.changed
    if vanished or changed:
        first, *_ = vanished + changed
        raise SourceError(
            f"{first} and {len(vanished) + len(changed) - 1:,} more files vanished or changed while they were being "
            "read; the finished work is kept: run the same command again"
        )
    return handed_back


def _record(root: Path, shard: int) -> dict[str, Any]:
    record = cache.read_record(root, shard)
    if record is None:
        raise CacheError(f"{cache.record_file(root, shard)}: missing; run: pipeline verify --repair")
    return record


# --- commit --------------------------------------------------------------------------------------------------------


def _commit(settings: Settings, root: Path, found: Survey, entries: list[Entry], labels: Any) -> cache.Commit:
    """Write tables and commit, and forget the pending plan."""
    from pipeline.convert import library_versions
    from pipeline.tables import make_tables, to_csv

    new = ledger_of(entries)
    kept = found.plan.settled.kept
    ledger = merge(kept, _lines_without(kept, set(new.paths)), new)
    records = {shard: _record(root, shard) for shard in shards_of(ledger)}
    classes = () if labels is None else settings.classes
    rows_per_shard = settings.layout.rows_per_shard
    tables = make_tables(ledger, records, rows_per_shard, settings.image_id, labels, [klass.name for klass in classes])
    if found.head is None and tables.metadata.empty:
        kinds = ", ".join(f"{number:,} {kind.replace('_', ' ')}" for kind, number in tables.counts.items() if number)
        first = tables.rejects.iloc[0]
        raise SourceError(f"{settings.src}: no file of it is a CT slice ({kinds}); {first['path']}: {first['message']}")
    if labels is not None and tables.label_counts["slices_without_label"] == len(tables.metadata) > 0:
        raise SourceError(
            f"{settings.labels.filepath}: none of its {len(labels):,} images is among the slices; are these the labels "
            f"of this data set, and is image_id: {settings.image_id} right in the catalog?"
        )
    table, rejects = to_csv(tables.metadata), to_csv(tables.rejects)
    attributes = {
        "format": cache.FORMAT,
        "format_version": cache.FORMAT_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dataset": settings.dataset,
        "windows": [{"name": w.name, "level_hu": w.level_hu, "width_hu": w.width_hu} for w in settings.windows],
        "sizes": {str(spec.size_px): spec.images_path for spec in found.wanted.arrays},
        "sums": {str(spec.size_px): spec.sums_path for spec in found.wanted.arrays},
        "classes": [{"name": klass.name, "weight": klass.weight} for klass in classes],
        "splits": {side: getattr(settings.splits, side) for side in ("train", "validation", "test")},
        "rows_per_shard": rows_per_shard,
        "num_slices": len(tables.metadata),
        "metadata": {"file": f"tables/{sha256(table)}.csv", "digest": sha256(table)},
        "counts": tables.counts,
        "label_counts": tables.label_counts,
    }
    next_shard = cache.next_shard(root)
    private = {
        "next_shard": next_shard,
        "reading": found.wanted.reading,
        "table": found.wanted.table,
        "rejects_digest": sha256(rejects),
        "patient_key": settings.patient_key_digest,
        "source": settings.src,
        "versions": library_versions(),
    }
    arrays = _array_documents(root, settings, found.wanted, next_shard * rows_per_shard)
    commit = cache.make_commit(attributes, arrays, private)
    cache.publish_commit(root, commit, table, rejects, ledger)
    cache.clear_pending(root)
    return commit


def _array_documents(root: Path, settings: Settings, wanted: Fingerprints, rows: int) -> dict[str, Any]:
    documents: dict[str, Any] = {}
    for spec in wanted.arrays:
        codecs = _codec(root, spec, settings).metadata()
        documents |= cache.new_array_metadata(spec, len(settings.windows), rows, settings.layout.rows_per_shard, codecs)
    return documents

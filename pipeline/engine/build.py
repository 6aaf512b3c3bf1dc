"""Build a cache: survey what is there, run the plan's tasks, commit."""

import contextlib
import dataclasses
import errno
import functools
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.cache import commits
from pipeline.cache.attributes import Private, Terms
from pipeline.cache.commits import Commit
from pipeline.cache.documents import array_metadata, stored_array
from pipeline.cache.done_records import read_record
from pipeline.cache.files import canonical, write_atomic
from pipeline.cache.head import current_commit, recorded_head
from pipeline.cache.ledger import Entry, ledger_of, merge
from pipeline.cache.lock import lock
from pipeline.cache.paths import Cache
from pipeline.cache.pending import Pending, clear_pending, first_free_shard, is_committed, read_pending, write_pending
from pipeline.errors import CacheError, SourceError
from pipeline.planning import plan
from pipeline.planning.built import choices
from pipeline.planning.estimate import estimate
from pipeline.planning.plan import HandedBack, Plan, ShardJob
from pipeline.planning.settings import Manner, Settings, Workers
from pipeline.planning.stages import ArrayPath, ArraySpec
from pipeline.planning.survey import Survey, entries_of, survey
from pipeline.words import counted


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a build came to.

    Attributes:
        changed: whether there is a new commit.
    """

    commit: Commit
    changed: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """What a build tells while it works: the plan, where its tasks run, files begun of a shard, then each shard."""

    planned: Callable[[Plan], None]
    note: Callable[[str], None]
    files_begun: Callable[[int, int], None]
    shard_done: Callable[[ShardJob, Any], None]
    stage: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step of one build needs.

    Attributes:
        token: of the lock that the build holds.
    """

    cache: Cache
    settings: Settings
    found: Survey
    token: str
    manner: Manner


def build(cache: Cache, *, settings: Settings, workers: Workers, manner: Manner, progress: Progress) -> Outcome:
    """Bring the cache to what the settings and the source ask for.

    Raises:
        SourceError, CacheError: with the old commit intact and the work resumable.
    """
    try:
        current_commit(cache)  # refuses a folder that is no cache before the lock puts anything there
        with lock(cache) as token:
            found = survey(cache, settings, check_content=manner.check_content, retry_rejected=manner.retry_rejected)
            return _build(_Work(cache, settings, found, token, manner), workers, progress)
    except OSError as error:
        raise _target_error(cache, error) from error


def _build(work: _Work, workers: Workers, progress: Progress) -> Outcome:
    found, cache = work.found, work.cache
    progress.planned(found.plan)
    if found.head and not found.plan.commit:
        _note_touched(cache, found)
        return Outcome(found.head, changed=False)
    _refuse_vanished(work)
    table_labels = _find_labels(work)
    _collect_leftovers(cache, found.head)
    _check_space(cache, work.settings, found.plan)
    entries = _convert(work, workers, progress)
    _collect_partials(cache)  # of workers that were killed meanwhile
    progress.stage("writing the tables and the commit")
    return Outcome(_commit(work, entries, table_labels, progress.stage), changed=True)


# --- before anything is written ------------------------------------------------------------------------------------


def _note_touched(cache: Cache, found: Survey) -> None:
    """Nothing is to be built: keep new time stamps, so that the next scan believes them, and tidy up after a kill."""
    assert found.head
    from pipeline.cache.copies import mend_copies

    if found.plan.resolved.touched:
        commits.write_ledger(cache, found.head.id, found.plan.resolved.kept)
    if mend_copies(cache, found.head):
        _collect_leftovers(cache, found.head)
    pending = read_pending(cache)
    if pending and is_committed(pending, found.head):
        clear_pending(cache)


def _collect_leftovers(cache: Cache, head: Commit | None) -> None:
    """Remove what killed builders have left: temporary files, and commits that never became the current one."""
    _collect_partials(cache)
    known = {head.id, *head.private.before} if head else set()
    strays = cache.commit_ids() - known
    if recorded_head(cache) in strays:
        raise CacheError(f"{cache.root_document}: is older than the commit recorded last; {commits.REPAIR}")
    for stray in strays:
        commits.remove_commit(cache, stray)


def _collect_partials(cache: Cache) -> None:
    for partial in cache.partials():
        partial.unlink(missing_ok=True)


def _refuse_vanished(work: _Work) -> None:
    vanished = work.found.plan.resolved.vanished
    if vanished and not work.manner.prune:
        raise SourceError(
            f"{work.cache}: {len(vanished):,} of the files that it was built from are gone, {vanished[0]} for one; "
            "bring them back, or run with --prune to let their slices leave"
        )


def _find_labels(work: _Work) -> Any:
    """The labels of the file, or those of the commit where the file has vanished; None where none are wanted."""
    labels, head = work.settings.labels, work.found.head
    if labels.file.filepath is None:
        return None
    from pipeline.tables.labels import labels_of_table, read_labels
    from pipeline.tables.patients import hash_patient

    classes = [klass.name for klass in work.settings.classes]
    if labels.content is not None:
        name_patient = functools.partial(hash_patient, work.manner.patient_key)
        return read_labels(labels.file, labels.content, classes, name_patient)
    assert head
    return labels_of_table(labels.file, commits.read_table(work.cache, head), classes)


def _check_space(cache: Cache, settings: Settings, made: Plan) -> None:
    need, free = estimate(made.jobs, len(settings.windows)).disk_bytes, shutil.disk_usage(cache.root).free
    if need > free:
        raise CacheError(
            f"{cache}: {made.slices_expected:,} slices need about {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "make room, or give another --out"
        )


def _target_error(cache: Cache, error: OSError) -> CacheError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else error.strerror or str(error)
    return CacheError(f"{error.filename or cache}: {what}; nothing is lost: mend it and run the same command again")


# --- shards --------------------------------------------------------------------------------------------------------


def _convert(work: _Work, workers: Workers, progress: Progress) -> list[Entry]:
    """Run the plan's tasks, and further ones for files with more frames than fitted. Returns the new entries."""
    cache, settings, found = work.cache, work.settings, work.found
    if not found.plan.jobs:
        return []
    context = make_context(cache, settings, found, work.token, work.manner.patient_key)
    _declare_arrays(cache, found.head, settings, found.wanted.arrays)
    base = found.head.id if found.head else ""
    pending = dict(found.plan.pending)
    jobs = found.plan.jobs
    while jobs:
        write_pending(cache, Pending(base, found.wanted.reading, pending))
        handed_back = _run(context, jobs, workers, progress)
        more = plan.place_frames(handed_back, max(pending, default=-1) + 1, settings.layout.rows_per_shard)
        pending |= more
        jobs = tuple(ShardJob(shard, units, found.wanted.arrays) for shard, units in sorted(more.items()))
    records = {shard: record for shard in pending if (record := read_record(cache, shard))}
    there = set(found.listing.paths)
    return [entry for entry in entries_of(records) if entry.path in there]


def make_context(cache: Cache, settings: Settings, found: Survey, token: str, patient_key: bytes | None) -> Any:
    """Put together what every task of the build needs: a `Context`."""
    from pipeline.engine.context import Context

    return Context(
        source=found.source,
        cache=cache,
        token=token,
        reading=settings.reading,
        reading_fingerprint=found.wanted.reading,
        patient_key=patient_key,
        windows=settings.windows,
        rows_per_shard=settings.layout.rows_per_shard,
        codecs={spec.name: _codec(cache, found.head, spec, settings) for spec in found.wanted.arrays},
    )


def _codec(cache: Cache, head: Commit | None, spec: ArraySpec, settings: Settings) -> Any:
    """The compressor of an array: the commit's, or that of the array on disk, for a new one the catalog's."""
    from pipeline.cache.shards import Codec

    committed = head.arrays.get(spec.images_path) if head else None
    existing = committed or array_metadata(cache, spec.images_path)
    if existing:
        return Codec.of(stored_array(existing))
    return Codec(settings.layout.compression, settings.layout.compression_level)


def _declare_arrays(cache: Cache, head: Commit | None, settings: Settings, wanted: Iterable[ArraySpec]) -> None:
    """Write the zarr.json of new arrays before their first shard: a build that goes on must use the same compressor.

    No reader sees them: the root's consolidated metadata does not name them yet.
    """
    for spec in wanted:
        if not cache.document(spec.images_path).exists():
            for path, document in _array_documents(cache, head, settings, [spec], rows=0).items():
                write_atomic(cache.document(path), canonical(document))


def _run(context: Any, jobs: Iterable[ShardJob], workers: Workers, progress: Progress) -> list[HandedBack]:
    from pipeline.engine.run import run_jobs

    of_shard = {job.shard: job for job in jobs}
    handed_back: list[HandedBack] = []
    run = run_jobs(context, list(of_shard.values()), workers, progress.note, progress.files_begun)
    with contextlib.closing(run) as results:
        for result in results:
            missed = result.vanished + result.changed
            if missed:
                raise SourceError(
                    f"{missed[0]}: vanished or changed while it was to be read, with {len(missed) - 1:,} more files of "
                    "its shard; the finished work is kept: run the same command again"
                )
            progress.shard_done(of_shard[result.shard], result)
            handed_back += result.handed_back
    return handed_back


# --- commit --------------------------------------------------------------------------------------------------------


def _commit(work: _Work, entries: list[Entry], labels: Any, say: Callable[[str], None]) -> Commit:
    """Write tables and commit, and forget the pending plan."""
    cache, settings, found = work.cache, work.settings, work.found
    from pipeline.cache.committing import tables_of, write_commit
    from pipeline.engine.versions import library_versions

    ledger = merge(found.plan.resolved.kept, ledger_of(entries))
    rows_per_shard = settings.layout.rows_per_shard
    terms = Terms(
        dataset=settings.dataset,
        windows=settings.windows,
        arrays=found.wanted.arrays,
        classes=() if labels is None else settings.classes,
        splits=settings.splits,
        rows_per_shard=rows_per_shard,
        label_level=settings.labels.file.level,
    )
    tables = tables_of(cache, ledger, terms, settings.image_id, labels)
    _refuse_useless(settings, found, tables, labels)
    if tables.shared_uids:
        shared = counted(tables.shared_uids, "Series Instance UID")
        say(f"{shared} in several studies; each study's is a series of its own")
    pending = read_pending(cache)
    next_shard = first_free_shard(cache, found.head, pending)
    private = Private(
        before=(),
        next_shard=next_shard,
        reading=found.wanted.reading,
        reading_settings=dataclasses.asdict(settings.reading),
        image_id=settings.image_id,
        table=found.wanted.table,
        patient_key=settings.patient_key_digest,
        source=settings.src,
        choices=choices(settings),
        versions=library_versions(),
        rejects_digest="",
        z_from={},
    )
    arrays = _array_documents(cache, found.head, settings, found.wanted.arrays, next_shard * rows_per_shard)
    commit = write_commit(cache, found.head, ledger, tables, terms, arrays=arrays, private=private)
    if pending and pending.reading == found.wanted.reading:
        clear_pending(cache)
    return commit


def _refuse_useless(settings: Settings, found: Survey, tables: Any, labels: Any) -> None:
    if found.head is None and tables.metadata.empty:
        kinds = ", ".join(f"{number:,} {kind.replace('_', ' ')}" for kind, number in tables.counts.items() if number)
        first = tables.rejects.iloc[0]
        raise SourceError(f"{settings.src}: no file of it is a CT slice ({kinds}); {first['path']}: {first['message']}")
    if labels is not None and tables.label_counts["slices_without_label"] == len(tables.metadata) > 0:
        raise SourceError(
            f"{settings.labels.file.filepath}: none of its {len(labels):,} {_things(settings)} is in the data, "
            f"{labels.index[0]} for one; are these the labels of this data set, and is {_way(settings)} right in the "
            "catalog?"
        )


def _things(settings: Settings) -> str:
    return {"slice": "images", "study": "studies", "patient": "patients"}.get(settings.labels.file.level, "series")


def _way(settings: Settings) -> str:
    level = settings.labels.file.level
    return f"image_id: {settings.image_id}" if level == "slice" else f"labels: {{level: {level}}}"


def _array_documents(
    cache: Cache, head: Commit | None, settings: Settings, wanted: Iterable[ArraySpec], rows: int
) -> dict[ArrayPath, Any]:
    from pipeline.cache.arrays import new_array_metadata

    documents: dict[ArrayPath, Any] = {}
    for spec in wanted:
        codecs = _codec(cache, head, spec, settings)
        documents |= new_array_metadata(spec, len(settings.windows), rows, settings.layout.rows_per_shard, codecs)
    return documents

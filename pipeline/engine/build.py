"""Build a cache: survey the source and the cache, run the plan's tasks, commit."""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.cache import commits
from pipeline.cache.commits import Commit
from pipeline.cache.done_records import read_record
from pipeline.cache.head import current_commit, recorded_head
from pipeline.cache.ledger import Entry
from pipeline.cache.lock import lock
from pipeline.cache.paths import Cache
from pipeline.cache.pending import Pending, clear_pending, is_committed, read_pending, write_pending
from pipeline.engine.work import Work
from pipeline.errors import CacheError, SourceError
from pipeline.planning import plan
from pipeline.planning.estimate import estimate
from pipeline.planning.jobs import HandedBack, ShardJob
from pipeline.planning.plan import Plan
from pipeline.planning.settings import BuildOptions, Settings, Workers
from pipeline.planning.survey import Survey, entries_of, survey
from pipeline.words import counted


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a build.

    Attributes:
        commit: the current commit.
        changed: whether it is new.
    """

    commit: Commit
    changed: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """Callbacks that report the progress of a build.

    Attributes:
        planned: called once with the plan, before anything is written.
        note: called with a line about the workers.
        files_begun: called with an unfinished shard and the number of its files begun so far.
        shard_done: called with each finished job and its `ShardResult`.
        stage: called with a line that names the current step of the commit.
    """

    planned: Callable[[Plan], None]
    note: Callable[[str], None]
    files_begun: Callable[[int, int], None]
    shard_done: Callable[[ShardJob, Any], None]
    stage: Callable[[str], None]


def build(cache: Cache, *, settings: Settings, workers: Workers, options: BuildOptions, progress: Progress) -> Outcome:
    """Build the cache, or bring it up to date with the settings and the source.

    Raises:
        SourceError, CacheError: the build failed; the old commit is intact, and the same build resumes the work.
    """
    try:
        current_commit(cache)  # refuses a folder that is not a cache before the lock creates a file in it
        with lock(cache) as token:
            found = survey(cache, settings, check_content=options.check_content, retry_rejected=options.retry_rejected)
            return _build(Work(cache, settings, found, token, options), workers, progress)
    except OSError as error:
        raise _target_error(cache, error) from error


def _build(work: Work, workers: Workers, progress: Progress) -> Outcome:
    found, cache = work.found, work.cache
    progress.planned(found.plan)
    if found.head and not found.plan.commit:
        _finish_unchanged(cache, found)
        return Outcome(found.head, changed=False)
    from pipeline.engine.commit import commit_build, find_labels  # import pandas and zarr, which a no-op does not need

    _refuse_vanished(work)
    labels = find_labels(work)
    _remove_leftovers(cache, found.head)
    _check_space(cache, work.settings, found.plan)
    entries = _convert(work, workers, progress)
    _remove_partials(cache)  # of workers that were killed during the build
    progress.stage("writing the tables and the commit")
    return Outcome(commit_build(work, entries, labels, progress.stage), changed=True)


# --- before anything is written ------------------------------------------------------------------------------------


def _finish_unchanged(cache: Cache, found: Survey) -> None:
    """Finish a build with nothing to do: store new time stamps, so that the next scan trusts them, and clean up."""
    assert found.head
    from pipeline.cache.copies import update_copies

    if found.plan.resolved.touched:
        commits.write_ledger(cache, found.head.id, found.plan.resolved.kept)
    if update_copies(cache, found.head):
        _remove_leftovers(cache, found.head)
    pending = read_pending(cache)
    if pending and is_committed(pending, found.head):
        clear_pending(cache)


def _remove_leftovers(cache: Cache, head: Commit | None) -> None:
    """Remove what killed builders left behind: temporary files, and commits that never became the current one.

    Raises:
        CacheError: such a commit is recorded as the current one, so the root is out of date.
    """
    _remove_partials(cache)
    known = {head.id, *head.private.before} if head else set()
    strays = cache.commit_ids() - known
    if recorded_head(cache) in strays:
        raise CacheError(f"{cache.root_document}: is older than the commit recorded last; {commits.REPAIR}")
    for stray in strays:
        commits.remove_commit(cache, stray)


def _remove_partials(cache: Cache) -> None:
    for partial in cache.partials():
        partial.unlink(missing_ok=True)


def _refuse_vanished(work: Work) -> None:
    vanished = work.found.plan.resolved.vanished
    if vanished and not work.options.prune:
        raise SourceError(
            f"{work.cache}: {len(vanished):,} of the files it was built from are gone, such as {vanished[0]}; "
            "restore them, or run with --prune to remove their slices"
        )


def _check_space(cache: Cache, settings: Settings, made: Plan) -> None:
    need, free = estimate(made.jobs, len(settings.windows)).disk_bytes, shutil.disk_usage(cache.root).free
    if need > free:
        raise CacheError(
            f"{cache}: {made.slices_expected:,} slices need about {need / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; "
            "make room, or give another --out"
        )


def _target_error(cache: Cache, error: OSError) -> CacheError:
    """Return the error to raise when the cache cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else error.strerror or str(error)
    return CacheError(f"{error.filename or cache}: {what}; nothing is lost: fix this and run the same command again")


# --- shards --------------------------------------------------------------------------------------------------------


def _convert(work: Work, workers: Workers, progress: Progress) -> list[Entry]:
    """Run the plan's tasks, and more tasks for files with more frames than fit their shard.

    Returns:
        the ledger entries of the files in the plan's shards.
    """
    cache, settings, found = work.cache, work.settings, work.found
    if not found.plan.jobs:
        return []
    from pipeline.engine.arrays import declare_arrays

    context = make_context(work)
    declare_arrays(work)
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
    listed = set(found.listing.paths)
    return [entry for entry in entries_of(records) if entry.path in listed]


def make_context(work: Work) -> Any:
    """Return the `Context` that all tasks of the build share."""
    from pipeline.engine.arrays import codec_of
    from pipeline.engine.context import Context

    settings, wanted = work.settings, work.found.wanted
    return Context(
        source=work.found.source,
        cache=work.cache,
        token=work.token,
        reading=settings.reading,
        reading_fingerprint=wanted.reading,
        patient_key=work.options.patient_key,
        windows=settings.windows,
        rows_per_shard=settings.layout.rows_per_shard,
        codecs={spec.name: codec_of(work, spec) for spec in wanted.arrays},
    )


def _run(context: Any, jobs: Iterable[ShardJob], workers: Workers, progress: Progress) -> list[HandedBack]:
    from pipeline.engine.run import run_jobs

    jobs_by_shard = {job.shard: job for job in jobs}
    handed_back: list[HandedBack] = []
    run = run_jobs(context, list(jobs_by_shard.values()), workers, progress.note, progress.files_begun)
    with contextlib.closing(run) as results:
        for result in results:
            if result.vanished or result.changed:
                raise _source_error(result.vanished, result.changed)
            progress.shard_done(jobs_by_shard[result.shard], result)
            handed_back += result.handed_back
    return handed_back


def _source_error(vanished: list[str], changed: list[str]) -> SourceError:
    """Return the error to raise when files of a shard cannot be read as planned."""
    first, *others = vanished + changed
    rest = f", as did {counted(len(others), 'other file')} of its shard" if others else ""
    lost = f"{first}: vanished or changed before it was read{rest}; finished work is kept: run the same command again"
    return SourceError(f"{lost}; add --check hash if this repeats" if changed else lost)

"""The task that runs on a Dask worker: checks, limits, one shard, and reports of its progress."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.cache.done_records import read_record
from pipeline.engine.context import Context, ShardResult, count_rejects
from pipeline.engine.convert import build_shard
from pipeline.engine.preflight import check_versions, check_worker
from pipeline.engine.watched import limits
from pipeline.errors import CacheError
from pipeline.planning.jobs import ShardJob

REPORT_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """A shard to build, in a form that any worker can receive: unpickling its bytes runs the task.

    Dask ends a worker that cannot import a name in a message, and makes the scheduler import it too; inside a task, a
    failed import is an error like any other.
    """

    versions: dict[str, str]
    call: bytes

    @staticmethod
    def encode(context: Context, job: ShardJob, versions: dict[str, str]) -> bytes:
        return pickle.dumps(Task(versions, pickle.dumps((context, job))))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return build_on_worker, (self.versions, self.call)


def build_on_worker(versions: dict[str, str], call: bytes) -> ShardResult | CacheError | MemoryError:
    """Build a shard within limits, so that a file that hangs or exhausts the memory ends only this process.

    Errors that would recur are returned. Dask retries those that are raised, such as a source that does not respond.

    Args:
        versions: library versions where the build was started.
        call: pickled context and job, unpickled only if the versions match.
    """
    try:
        _check_threads()
        check_versions(versions)
        context, job = pickle.loads(call)
        with limits() as begin:
            begin(job.units[0].slot)
            check_worker(context, job)
            return finished_before(context, job) or build_shard(context, job, _reporting(begin, context, job.shard))
    except (CacheError, MemoryError) as error:
        return error


def finished_before(context: Context, job: ShardJob) -> ShardResult | None:
    """Return the result of a task that this build has finished before, None if it has not.

    Until the builder has fetched a result, it can be lost with its worker; Dask then runs the task again.
    """
    done = context.cache.record_file(job.shard)
    try:
        if done.stat().st_mtime_ns < context.cache.lock_file.stat().st_mtime_ns:
            return None  # from an earlier build, and out of date for this one
    except FileNotFoundError:
        return None
    record = read_record(context.cache, job.shard)
    if record is None or not {spec.name for spec in job.arrays} <= record.arrays.keys():
        return None
    seen = {slot for slot, digest in enumerate(file.digest for file in record.files) if digest is not None}
    if not job.adds_arrays and seen != {unit.slot for unit in job.units} - job.missing:
        return None  # a file was handed back, and the record does not contain its number of frames
    failed, other_files = count_rejects(line.code for line in record.rejects)
    return ShardResult(job.shard, slices=len(record.slices), failed=failed, other_files=other_files)


def _check_threads() -> None:
    import distributed

    threads = distributed.get_worker().state.nthreads
    if threads > 1:
        raise CacheError(
            f"a Dask worker has {threads} threads, which would share the limits of one process; start it with "
            "--nthreads 1, and --nworkers N for more"
        )


def topic(context: Context) -> str:
    """Return the Dask topic on which a build's workers report (shard, number of files begun)."""
    return f"files-{context.token}"


def _reporting(begin: Callable[[int], None], context: Context, shard: int) -> Callable[[int], None]:
    """Wrap `begin` so that it also reports the number of files begun, at most twice a second."""
    import distributed

    worker, files, reported = distributed.get_worker(), 0, time.monotonic()

    def begin_file(slot: int) -> None:
        nonlocal files, reported
        begin(slot)
        files += 1
        if time.monotonic() - reported > REPORT_EVERY_S or files == 1:
            worker.log_event(topic(context), (shard, files))
            reported = time.monotonic()

    return begin_file

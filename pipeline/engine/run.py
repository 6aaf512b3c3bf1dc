"""This file runs tasks: in a plain loop, on local processes, or on any Dask cluster."""

import contextlib
import itertools
import pickle
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import layout
from pipeline.cache.lock import lock_file
from pipeline.convert import Context, ShardResult, build_shard, library_versions
from pipeline.engine.preflight import check_versions, check_worker
from pipeline.engine.watched import limits, run_watched
from pipeline.errors import CacheError, PipelineError
from pipeline.plan import ShardJob
from pipeline.settings import Workers

# Tasks that Dask knows of at a time, of about 20 KB each: two for each of 512 workers.
TASKS_IN_FLIGHT = 1024
# For what may pass: a server that stalls, a worker that is replaced.
RETRIES = 2
POLL_S, LOOK_EVERY_S = 0.02, 2.0


def run_jobs(
    context: Context, jobs: Sequence[ShardJob], workers: Workers, say: Callable[[str], None]
) -> Generator[ShardResult, None, None]:
    """Run every job and give its result as it comes.

    A job whose worker dies is run again in a watched process, which finds the file that kills it; that file becomes
    a reject, its neighbours are built.

    Args:
        say: told in a line where the tasks run.

    Raises:
        PipelineError: workers cannot be had, cannot do the work, or are gone; finished shards are kept.
        OSError: the target cannot be written.
    """
    if workers.in_process:
        yield from (build_shard(context, job) for job in jobs)
        return
    from pipeline.engine.cluster import connect

    with connect(workers, len(jobs), say) as connection, _performance_report(workers.report):
        yield from _run_on_dask(connection.client, context, jobs, connection.look)


@dataclass(frozen=True, slots=True)
class Task:
    """A shard to build, in a form that any worker can receive: `pickle.loads` of its bytes is the task.

    Dask ends a worker that cannot import what a message names, and has the scheduler import it too; inside of a task
    that is an error like any other.
    """

    versions: dict[str, str]
    call: bytes

    @staticmethod
    def encode(context: Context, job: ShardJob, versions: dict[str, str]) -> bytes:
        return pickle.dumps(Task(versions, pickle.dumps((context, job))))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return build_on_worker, (self.versions, self.call)


def build_on_worker(versions: dict[str, str], call: bytes) -> ShardResult | PipelineError | MemoryError:
    """Build a shard inside limits: a file that hangs or eats memory ends this process, not the machine.

    Errors that would come again are returned: Dask retries those that are raised.

    Args:
        versions: of the libraries that decide over pixels, where the build was started.
        call: context and job, pickled; read only once the versions are the same.
    """
    try:
        _check_threads()
        check_versions(versions)
        context, job = pickle.loads(call)
        with limits() as begin:
            begin(job.units[0].slot)
            check_worker(context, job)
            return _finished_before(context, job) or build_shard(context, job, begin)
    except (PipelineError, MemoryError) as error:
        return error


def _finished_before(context: Context, job: ShardJob) -> ShardResult | None:
    """The result of a task that this build has finished already, None where it has not.

    A result is lost with its worker until the builder has fetched it; Dask then runs the task again.
    """
    done = layout.record_file(context.root, job.shard)
    try:
        if done.stat().st_mtime_ns < lock_file(context.root).stat().st_mtime_ns:
            return None  # of an earlier build, and not what the plan wants
    except FileNotFoundError:
        return None
    record = layout.read_record(context.root, job.shard)
    if record is None or not {spec.name for spec in job.arrays} <= record["arrays"].keys():
        return None
    seen = {slot for slot, digest in enumerate(record["files"]["digest"]) if digest is not None}
    if not job.again and seen != {unit.slot for unit in job.units} - job.gone:
        return None  # a file was handed back, and the record does not say how many frames it has
    return ShardResult(job.shard, slices=len(record["slices"]["slot"]), rejects=len(record["rejects"]["slot"]))


def _check_threads() -> None:
    import distributed

    threads = distributed.get_worker().state.nthreads
    if threads > 1:
        raise CacheError(
            f"a Dask worker has {threads} threads, which would share the limits of one process; start it with "
            "--nthreads 1, and --nworkers N for more"
        )


def _run_on_dask(
    client: Any, context: Context, jobs: Sequence[ShardJob], look: Callable[[], None]
) -> Iterator[ShardResult]:
    import distributed

    versions = library_versions()
    waiting = iter(jobs)
    of_future: dict[Any, ShardJob] = {}

    def submit(count: int) -> list[Any]:
        futures = {
            client.submit(
                pickle.loads, Task.encode(context, job, versions), key=_key(context, job), retries=RETRIES
            ): job
            for job in itertools.islice(waiting, count)
        }
        of_future.update(futures)
        return list(futures)

    running = distributed.as_completed(submit(TASKS_IN_FLIGHT))
    for future in _as_they_come(running, look):
        job = of_future.pop(future)
        outcome = _outcome(future)
        running.update(submit(1))
        yield outcome or _finished_before(context, job) or run_watched(context, job)


def _key(context: Context, job: ShardJob) -> str:
    """What dashboards and reports call a task; the same in no two builds."""
    return f"build_shard-{context.token}-{job.shard}"


def _as_they_come(running: Any, look: Callable[[], None]) -> Iterator[Any]:
    """Give finished futures, and take a look at the workers every few seconds, whether one has finished or not."""
    looked = time.monotonic()
    while not running.is_empty():
        if time.monotonic() - looked > LOOK_EVERY_S:
            look()
            looked = time.monotonic()
        if running.has_ready():
            yield next(running)
        else:
            time.sleep(POLL_S)


def _outcome(future: Any) -> ShardResult | None:
    """The result of a task; None where a file of it ended the worker, or would have."""
    import distributed

    try:
        outcome = future.result()
    except distributed.KilledWorker:
        return None
    except CancelledError:
        raise CacheError("the Dask scheduler has gone; finished shards are kept: run the same command again") from None
    except ImportError as error:
        raise CacheError(f"a worker cannot load its task: {error}; install the same packages there as here") from error
    if isinstance(outcome, MemoryError):
        return None
    if isinstance(outcome, PipelineError):
        raise outcome
    return outcome


@contextlib.contextmanager
def _performance_report(file: Path | None) -> Iterator[None]:
    """Have Dask write its report of the tasks, an HTML page, when they are done."""
    if file is None:
        yield
        return
    import distributed

    try:
        import bokeh  # noqa: F401
    except ImportError:
        raise CacheError(f"--performance-report {file}: Dask draws it with bokeh; pip install bokeh") from None
    with distributed.performance_report(filename=str(file)):
        yield

"""Run tasks in a plain loop, on local processes, or on any Dask cluster."""

import contextlib
import itertools
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from pipeline.engine.context import Context, ShardResult
from pipeline.engine.convert import build_shard
from pipeline.engine.task import Task, finished_before, topic
from pipeline.engine.versions import library_versions
from pipeline.engine.watched import run_watched
from pipeline.errors import CacheError
from pipeline.planning.jobs import ShardJob
from pipeline.planning.settings import Workers

# Number of tasks submitted to Dask at a time, about 20 KB each: two for each of 512 workers.
TASKS_IN_FLIGHT = 1024
# For failures that pass, such as a stalled server or a replaced worker.
RETRIES = 2
POLL_S, CHECK_EVERY_S, FETCH_S = 0.02, 2.0, 2.0


class _LostError(Exception):
    """A result is lost with its worker, or cannot be fetched at the moment; its task runs again."""


def run_jobs(
    context: Context,
    jobs: Sequence[ShardJob],
    workers: Workers,
    say: Callable[[str], None],
    begun: Callable[[int, int], None] = lambda shard, files: None,
) -> Generator[ShardResult, None, None]:
    """Run every job and yield each result as it is done.

    A job whose worker dies is run again in a child process, which finds the file that kills it; that file is rejected,
    and the others are built.

    Args:
        say: called with a line about the workers.
        begun: called every now and then with an unfinished shard and the number of its files begun so far.

    Raises:
        PipelineError: workers cannot be started, cannot do the work, or are gone; finished shards are kept.
        OSError: the cache cannot be written.
    """
    if workers.in_process:
        yield from (build_shard(context, job, _counting(job.shard, begun)) for job in jobs)
        return
    from pipeline.engine.cluster import connect

    with connect(workers, len(jobs), say) as connection, _performance_report(workers.report):
        yield from _run_on_dask(connection, context, jobs, begun)


def _counting(shard: int, begun: Callable[[int, int], None]) -> Callable[[int], None]:
    """Return the `begin` of `build_shard` that counts a shard's files for `begun`."""
    files = itertools.count(1)
    return lambda slot: begun(shard, next(files))


def _run_on_dask(
    connection: Any, context: Context, jobs: Sequence[ShardJob], begun: Callable[[int, int], None]
) -> Iterator[ShardResult]:
    import distributed

    client, events = connection.client, deque[tuple[int, int]]()
    client.subscribe_topic(topic(context), lambda event: events.append(event[1]))
    versions = library_versions()
    waiting = iter(jobs)
    jobs_by_future: dict[Any, ShardJob] = {}

    def submit(count: int) -> list[Any]:
        futures = {
            client.submit(
                pickle.loads, Task.encode(context, job, versions), key=_key(context, job), retries=RETRIES
            ): job
            for job in itertools.islice(waiting, count)
        }
        jobs_by_future.update(futures)
        return list(futures)

    running = distributed.as_completed(submit(TASKS_IN_FLIGHT))
    for future in _as_finished(running, connection.check_workers, lambda: _report_begun(events, begun)):
        try:
            outcome = _outcome(future)
        except _LostError:
            running.add(future)
            continue
        job = jobs_by_future.pop(future)
        running.update(submit(1))
        yield outcome or finished_before(context, job) or run_watched(context, job)


def _key(context: Context, job: ShardJob) -> str:
    """Return the name of a task in dashboards and reports, which is unique across builds."""
    return f"build_shard-{context.token}-{job.shard}"


def _report_begun(events: deque[tuple[int, int]], begun: Callable[[int, int], None]) -> None:
    while events:
        begun(*events.popleft())


def _as_finished(running: Any, check_workers: Callable[[], None], report: Callable[[], None]) -> Iterator[Any]:
    """Yield futures as they finish; meanwhile report progress, and check the workers every few seconds."""
    checked = time.monotonic()
    while not running.is_empty():
        if time.monotonic() - checked > CHECK_EVERY_S:
            check_workers()
            checked = time.monotonic()
        report()
        if running.has_ready():
            yield next(running)
        else:
            time.sleep(POLL_S)


def _outcome(future: Any) -> ShardResult | None:
    """Return the result of a task, None if one of its files has killed the worker or would have.

    Dask keeps a result on its worker until it is fetched. A result that was lost with its worker is not waited for
    here: with no other worker left, that would take for ever, as nothing would check the workers meanwhile.

    Raises:
        _LostError: the result is lost, or cannot be fetched at the moment.
        CacheError: the scheduler is gone, or the task cannot run on the workers.
    """
    import distributed

    try:
        if not future.done():
            raise _LostError
        outcome = future.result(timeout=FETCH_S)
    except distributed.KilledWorker:
        return None
    except TimeoutError:  # of fetching the result, or raised by the task
        if future.status == "error":
            raise
        raise _LostError from None
    except CancelledError:
        raise CacheError("the Dask scheduler is gone; finished shards are kept: run the same command again") from None
    except ImportError as error:
        raise CacheError(f"a worker cannot load its task: {error}; install the same packages there as here") from error
    if isinstance(outcome, MemoryError):
        return None
    if isinstance(outcome, CacheError):
        raise outcome
    return outcome


@contextlib.contextmanager
def _performance_report(file: Path | None) -> Iterator[None]:
    """Let Dask write its performance report, an HTML page, at the end of the block."""
    if file is None:
        yield
        return
    import distributed

    try:
        import bokeh  # noqa: F401
    except ImportError:
        raise CacheError(
            f"--performance-report {file}: Dask needs bokeh for it; run: pip install 'ich-cache[cluster]'"
        ) from None
    with distributed.performance_report(filename=str(file)):
        yield

"""Run tasks: in a plain loop, on local processes, or on any Dask cluster."""

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

# Tasks that Dask knows of at a time, of about 20 KB each: two for each of 512 workers.
TASKS_IN_FLIGHT = 1024
# For what may pass: a server that stalls, a worker that is replaced.
RETRIES = 2
POLL_S, CHECK_EVERY_S, FETCH_S = 0.02, 2.0, 2.0


class _LostError(Exception):
    """A result has gone with its worker, or cannot be fetched for now: its task runs again."""


def run_jobs(
    context: Context,
    jobs: Sequence[ShardJob],
    workers: Workers,
    say: Callable[[str], None],
    begun: Callable[[int, int], None] = lambda shard, files: None,
) -> Generator[ShardResult, None, None]:
    """Run every job and give its result as it comes.

    A job whose worker dies is run again in a watched process, which finds the file that kills it; that file becomes
    a reject, its neighbours are built.

    Args:
        say: told in a line where the tasks run.
        begun: told every now and then how many files of an unfinished shard have been begun.

    Raises:
        PipelineError: workers cannot be started, cannot do the work, or are gone; finished shards are kept.
        OSError: the target cannot be written.
    """
    if workers.in_process:
        yield from (build_shard(context, job, _counted(job.shard, begun)) for job in jobs)
        return
    from pipeline.engine.cluster import connect

    with connect(workers, len(jobs), say) as connection, _performance_report(workers.report):
        yield from _run_on_dask(connection, context, jobs, begun)


def _counted(shard: int, begun: Callable[[int, int], None]) -> Callable[[int], None]:
    files = itertools.count(1)
    return lambda slot: begun(shard, next(files))


def _run_on_dask(
    connection: Any, context: Context, jobs: Sequence[ShardJob], begun: Callable[[int, int], None]
) -> Iterator[ShardResult]:
    import distributed

    client, heard = connection.client, deque[tuple[int, int]]()
    client.subscribe_topic(topic(context), lambda event: heard.append(event[1]))
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
    for future in _as_they_come(running, connection.check_workers, lambda: _tell(heard, begun)):
        try:
            outcome = _outcome(future)
        except _LostError:
            running.add(future)
            continue
        job = of_future.pop(future)
        running.update(submit(1))
        yield outcome or finished_before(context, job) or run_watched(context, job)


def _key(context: Context, job: ShardJob) -> str:
    """What dashboards and reports call a task; the same in no two builds."""
    return f"build_shard-{context.token}-{job.shard}"


def _tell(heard: deque[tuple[int, int]], begun: Callable[[int, int], None]) -> None:
    while heard:
        begun(*heard.popleft())


def _as_they_come(running: Any, check_workers: Callable[[], None], tell: Callable[[], None]) -> Iterator[Any]:
    """Give finished futures; tell what was heard meanwhile, and look at the workers every few seconds."""
    checked = time.monotonic()
    while not running.is_empty():
        if time.monotonic() - checked > CHECK_EVERY_S:
            check_workers()
            checked = time.monotonic()
        tell()
        if running.has_ready():
            yield next(running)
        else:
            time.sleep(POLL_S)


def _outcome(future: Any) -> ShardResult | None:
    """The result of a task; None where a file of it ended the worker, or would have.

    Dask leaves a result with its worker until it is fetched. To wait here for one that has gone with its worker would
    be to wait for ever where no other worker is left: someone has to look after the workers meanwhile.
    """
    import distributed

    try:
        if not future.done():
            raise _LostError
        outcome = future.result(timeout=FETCH_S)
    except distributed.KilledWorker:
        return None
    except TimeoutError:  # ours, or one that the task has ended with
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
    """Have Dask write its report of the tasks, an HTML page, when they are done."""
    if file is None:
        yield
        return
    import distributed

    try:
        import bokeh  # noqa: F401
    except ImportError:
        raise CacheError(
            f"--performance-report {file}: Dask draws it with bokeh; run: pip install 'ich-cache[cluster]'"
        ) from None
    with distributed.performance_report(filename=str(file)):
        yield

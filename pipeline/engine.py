"""This file runs tasks: in a plain loop, on local processes, or on any Dask cluster. (The only dask.)"""

import contextlib
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.convert import Context, ShardResult, build_shard
from pipeline.errors import CacheError
from pipeline.plan import ShardJob
from pipeline.records import Reject
from pipeline.settings import Workers

# One thread each: the processes already fill the cores. Set before the workers import anything.
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS")
ONE_THREAD = dict.fromkeys(THREAD_COUNTS, "1")
TASKS_IN_FLIGHT = 2  # a worker: one running, one waiting
FILE_LIMIT_S = 60
MEMORY_LIMIT_BYTES = 4 << 30


def run_jobs(context: Context, jobs: Sequence[ShardJob], workers: Workers) -> Iterator[ShardResult]:
    """Run every job and give its result as it comes.

    A job whose worker dies is run again in a watched process, which finds the file that kills it; that file becomes
    a reject, its neighbours are built.
    """
    if workers.local == 0 and workers.scheduler is None:
        yield from (build_shard(context, job) for job in jobs)
        return
    with _client(workers, len(jobs)) as client:
        yield from _run_on_dask(client, context, jobs)


@contextlib.contextmanager
def _client(workers: Workers, jobs: int) -> Iterator[Any]:
    import dask
    import distributed

    settings = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.nanny.pre-spawn-environ": ONE_THREAD,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        address: Any = workers.scheduler
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pipeline-"))
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=max(1, min(workers.local, jobs)),
                    threads_per_worker=1,
                    dashboard_address=None,
                    local_directory=folder,
                    silence_logs=logging.CRITICAL,
                )
            )
        try:
            yield stack.enter_context(distributed.Client(address, timeout=60))
        except OSError as error:
            if workers.scheduler and not isinstance(error, FileNotFoundError):
                raise CacheError(f"--scheduler {workers.scheduler}: no answer ({error})") from error
            raise


def _run_on_dask(client: Any, context: Context, jobs: Sequence[ShardJob]) -> Iterator[ShardResult]:
    import distributed

    [shared] = client.scatter([context], broadcast=True)
    waiting = iter(jobs)
    of_future: dict[Any, ShardJob] = {}

    def submit(job: ShardJob) -> Any:
        future = client.submit(build_on_worker, shared, job, pure=False)
        of_future[future] = job
        return future

    cores = sum(client.nthreads().values()) or 1
    running = distributed.as_completed([submit(job) for job in itertools.islice(waiting, cores * TASKS_IN_FLIGHT)])
    for future in running:
        job = of_future.pop(future)
        try:
            yield future.result()
        except distributed.KilledWorker:
            yield run_watched(context, job)
        for following in itertools.islice(waiting, 1):
            running.add(submit(following))


def build_on_worker(context: Context, job: ShardJob) -> ShardResult:
    """`build_shard` inside limits: a file that hangs or eats memory ends this process, not the machine."""
    return _build_within_limits(context, job, lambda slot: None)


def _build_within_limits(context: Context, job: ShardJob, begin: Callable[[int], object]) -> ShardResult:
    def begin_file(slot: int) -> None:
        begin(slot)
        # SIGALRM's default action ends the process even where a decoder holds the interpreter lock.
        signal.setitimer(signal.ITIMER_REAL, FILE_LIMIT_S)

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, hard))
    try:
        return build_shard(context, job, begin_file)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_watched(context: Context, job: ShardJob) -> ShardResult:
    """Run a job in a child process again and again, leaving out the file that ended the last one.

    Raises:
        CacheError: the job cannot be run even without its files.
    """
    spawn = multiprocessing.get_context("spawn")
    for _ in range(len(job.units) + 1):
        slot = spawn.Value("i", -1)
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_watched_child, args=(context, job, slot, sender))
        process.start()
        sender.close()
        outcome = _receive(receiver)
        process.join()
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            return outcome
        if slot.value < 0:
            break
        why = "took too long" if process.exitcode == -signal.SIGALRM else "ended the process that decoded it"
        refused = Reject("killed_worker", f"the file {why}; it is left out")
        job = replace(job, refused=(*job.refused, (slot.value, refused)))
    raise CacheError(f"{context.root}: shard {job.shard} ends every process that builds it; is there memory enough?")


def _receive(receiver: Any) -> ShardResult | BaseException | None:
    try:
        return receiver.recv()
    except EOFError:
        return None


def _watched_child(context: Context, job: ShardJob, slot: Any, sender: Any) -> None:
    os.environ.update(ONE_THREAD)

    def begin(number: int) -> None:
        slot.value = number

    try:
        sender.send(_build_within_limits(context, job, begin))
    except Exception as error:
        sender.send(error)

"""Keep a file that hangs, crashes or exhausts the memory from ending a build."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pipeline.dicom.records import Reject
from pipeline.engine.context import Context, ShardResult
from pipeline.engine.convert import build_shard
from pipeline.engine.interrupts import interrupts_deferred
from pipeline.errors import CacheError
from pipeline.planning.jobs import ShardJob
from pipeline.system import end_process_after, memory_limited

# One thread each: the processes already fill the cores. Set before a worker imports anything.
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS")
ONE_THREAD = dict.fromkeys(THREAD_COUNTS, "1")
FILE_LIMIT_S = 60.0
# Ten times what the largest file within the reader's own limits needs.
MEMORY_LIMIT_BYTES = 4 << 30
_OUT_OF_MEMORY = 77


@contextlib.contextmanager
def limits() -> Iterator[Callable[[int], None]]:
    """Limit this process's memory, and the time between calls of the yielded function.

    A process that exceeds the time is ended, because no exception can interrupt a decoder that hangs in native code.
    """

    def begin(slot: int) -> None:
        end_process_after(FILE_LIMIT_S)

    with memory_limited(MEMORY_LIMIT_BYTES):
        try:
            yield begin
        finally:
            end_process_after(0)


def run_watched(context: Context, job: ShardJob) -> ShardResult:
    """Run a job in a child process, and again without the file that ended it, until one process succeeds.

    Raises:
        CacheError: the process is killed even before the first file, or without any.
        PipelineError, OSError: as `build_shard` raises them.
    """
    spawn = multiprocessing.get_context("spawn")
    for _ in range(len(job.units) + 1):
        slot = spawn.Value("i", -1)
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_watched_child, args=(context, job, slot, sender), daemon=True)
        with interrupts_deferred():
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
        why = {
            -getattr(signal, "SIGALRM", 0): f"took more than {FILE_LIMIT_S:.0f} s",
            _OUT_OF_MEMORY: "took too much memory",
        }
        refused = Reject(
            "killed_worker", f"the file {why.get(process.exitcode or 0, 'ended the process that decoded it')}"
        )
        job = replace(job, rejected=(*job.rejected, (slot.value, refused)))
    raise CacheError(f"{context.cache}: shard {job.shard} kills every process that builds it; is there enough memory?")


def _receive(receiver: Any) -> ShardResult | BaseException | None:
    try:
        return receiver.recv()
    except EOFError:
        return None


def _watched_child(context: Context, job: ShardJob, slot: Any, sender: Any) -> None:
    os.environ.update(ONE_THREAD)

    def begin(number: int) -> None:
        slot.value = number
        limit(number)

    try:
        with limits() as limit:
            sender.send(build_shard(context, job, begin))
    except MemoryError:
        sys.exit(_OUT_OF_MEMORY)
    except Exception as error:
        sender.send(error)

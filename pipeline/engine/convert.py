"""The task that a worker runs: files in, one shard of each array and a done-record out."""

import contextlib
import time
from collections.abc import Callable

from pipeline.cache.lock import holds_lock
from pipeline.engine.context import Context, ShardResult
from pipeline.engine.fill import fill
from pipeline.engine.rerender import rerender
from pipeline.engine.shard import OpenShard
from pipeline.errors import CacheError
from pipeline.planning.jobs import ShardJob


def build_shard(context: Context, job: ShardJob, begin: Callable[[int], object] = lambda slot: None) -> ShardResult:
    """Read the job's files, write its shard of every array, then the done-record.

    Nothing is written if a file has vanished or changed.

    Args:
        begin: called with a file's slot before the file is opened.

    Raises:
        CacheError: another builder has taken over the cache.
        SourceError: the source as a whole can no longer be reached.
        OSError: the cache cannot be written.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        shard = OpenShard(context, job, begin, stack)
        record, result = rerender(shard) if job.adds_arrays else fill(shard)
        if not (result.vanished or result.changed):
            _check_token(context)
            result.bytes_written = shard.publish(record)
    result.seconds = time.perf_counter() - started
    return result


def _check_token(context: Context) -> None:
    if not holds_lock(context.cache, context.token):
        raise CacheError(f"{context.cache}: another build has taken over; this one stops without publishing")

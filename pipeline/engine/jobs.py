"""Look after the jobs of a cluster that the command has started: lost ones are asked for again."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import distributed

from pipeline.errors import CacheError

# A worker that its nanny starts again is back by then.
LOST_AFTER_S = 15.0


class Refusals(logging.Handler):
    """Takes the errors of what asks for jobs, `sbatch` for one, from the loops in which Dask asks."""

    def __init__(self) -> None:
        super().__init__()
        self._last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._last = record.exc_info[1]

    def take(self) -> str | None:
        """The last error in one line, once: what the command that asks wrote to stderr, where it was one."""
        error, self._last = self._last, None
        return " ".join(str(error).rpartition("stderr:")[2].split()) if error else None


@contextlib.contextmanager
def handled_by(handler: logging.Handler, *names: str) -> Iterator[None]:
    """Give these loggers one handler, and no other, for a while."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


class Jobs:
    """The jobs of a started cluster, each with one worker or more.

    Dask's clusters ask for a job once: one that the queue has ended, for its time or by hand, does not come back.

    Args:
        scale: number of workers wanted, None where Dask adapts it.
        name: for messages.
        say: told in a line what happens to jobs while others work.
    """

    def __init__(
        self, cluster: Any, scale: int | None, refusals: Refusals, name: str, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._scale, self._refusals, self._name, self._say = cluster, scale, refusals, name, say
        self._last_seen: dict[str, float] = {}

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Let the cluster end after this: it asserts then that no job is in the state that a refused one stays in."""
        try:
            yield
        finally:
            if isinstance(self._cluster, distributed.SpecCluster):
                for job in self._cluster.workers.values():
                    if job.status is distributed.Status.created:
                        job.status = distributed.Status.failed

    def check_workers(self) -> None:
        """Ask again for jobs whose workers have gone.

        Raises:
            CacheError: no job is there, and none can be had.
        """
        if not isinstance(self._cluster, distributed.SpecCluster):
            return  # what runs elsewhere, on Kubernetes or behind a gateway, is replaced there
        self._ask_again()
        refusal = self._refusals.take()
        if refusal is None:
            return
        if not any(job.status is distributed.Status.running for job in self._cluster.workers.values()):
            raise CacheError(f"{self._name}: no worker could be started: {refusal}; finished shards are kept")
        self._say(f"{self._name}: {refusal}; going on with fewer workers")

    def _ask_again(self) -> None:
        now = time.monotonic()
        self._last_seen |= dict.fromkeys(self._cluster.observed, now)
        lost = {job: workers for job, workers in self._workers() if self._are_lost(workers, now)}
        if not lost:
            return
        for worker in itertools.chain.from_iterable(lost.values()):
            self._last_seen.pop(worker, None)  # names are given again
        self._say(f"{self._name}: {len(lost)} {'job' if len(lost) == 1 else 'jobs'} lost, submitting again")
        self._cluster.loop.add_callback(self._replace, list(lost))

    def _workers(self) -> Iterator[tuple[Any, list[Any]]]:
        """Each job that is wanted, and the names of its workers."""
        for job, spec in self._cluster.worker_spec.items():
            yield job, [f"{job}{suffix}" for suffix in spec["group"]] if "group" in spec else [job]

    def _are_lost(self, workers: list[Any], now: float) -> bool:
        """Whether some were there and none is now: a job that waits in the queue has had none."""
        seen = [self._last_seen[worker] for worker in workers if worker in self._last_seen]
        return bool(seen) and max(seen) < now - LOST_AFTER_S

    async def _replace(self, lost: list[Any]) -> None:
        await self._cluster.scale_down(lost)
        if self._scale is not None:
            self._cluster.scale(self._scale)

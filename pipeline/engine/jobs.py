"""Watch the jobs of a cluster that the command has started, and resubmit those that are lost."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import distributed

from pipeline.errors import CacheError

# A worker that its nanny restarts is back by then.
LOST_AFTER_S = 15.0


class SubmitErrors(logging.Handler):
    """Collects the errors of commands that submit jobs, such as `sbatch`, which Dask runs in its event loops."""

    def __init__(self) -> None:
        super().__init__()
        self._last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._last = record.exc_info[1]

    def take(self) -> str | None:
        """Return the last error once, in one line; of a failed command, what it wrote to stderr."""
        error, self._last = self._last, None
        return " ".join(str(error).rpartition("stderr:")[2].split()) if error else None


@contextlib.contextmanager
def handled_by(handler: logging.Handler, *names: str) -> Iterator[None]:
    """Make `handler` the only handler of these loggers within the block."""
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
    """The jobs of a started cluster, each with one or more workers.

    Dask's clusters submit a job only once: a job that ends at its time limit or is cancelled is not replaced.

    Args:
        scale: number of workers wanted, None if Dask adapts it.
        errors: the handler that collects the cluster's errors.
        name: name of the cluster in messages.
        say: called with a line about jobs that were lost or refused while others run.
    """

    def __init__(
        self, cluster: Any, scale: int | None, errors: SubmitErrors, name: str, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._scale, self._errors, self._name, self._say = cluster, scale, errors, name, say
        self._last_seen: dict[str, float] = {}

    @contextlib.contextmanager
    def closable(self) -> Iterator[None]:
        """Mark refused jobs as failed at the end of the block: closing the cluster asserts that none is `created`."""
        try:
            yield
        finally:
            if isinstance(self._cluster, distributed.SpecCluster):
                for job in self._cluster.workers.values():
                    if job.status is distributed.Status.created:
                        job.status = distributed.Status.failed

    def check_workers(self) -> None:
        """Resubmit the jobs whose workers are lost.

        Raises:
            CacheError: no job is running, and none can be submitted.
        """
        if not isinstance(self._cluster, distributed.SpecCluster):
            return  # Kubernetes and Dask Gateway replace lost workers themselves
        self._resubmit_lost()
        error = self._errors.take()
        if error is None:
            return
        if not any(job.status is distributed.Status.running for job in self._cluster.workers.values()):
            raise CacheError(f"{self._name}: no worker could be started: {error}; finished shards are kept")
        self._say(f"{self._name}: {error}; continuing with fewer workers")

    def _resubmit_lost(self) -> None:
        now = time.monotonic()
        self._last_seen |= dict.fromkeys(self._cluster.observed, now)
        lost = {job: workers for job, workers in self._workers() if self._are_lost(workers, now)}
        if not lost:
            return
        for worker in itertools.chain.from_iterable(lost.values()):
            self._last_seen.pop(worker, None)  # names are reused
        self._say(f"{self._name}: {len(lost)} {'job' if len(lost) == 1 else 'jobs'} lost, submitting again")
        self._cluster.loop.add_callback(self._replace, list(lost))

    def _workers(self) -> Iterator[tuple[Any, list[Any]]]:
        """Yield every wanted job and the names of its workers."""
        for job, spec in self._cluster.worker_spec.items():
            yield job, [f"{job}{suffix}" for suffix in spec["group"]] if "group" in spec else [job]

    def _are_lost(self, workers: list[Any], now: float) -> bool:
        """Return whether some of a job's workers were seen, but none recently; a queued job has had no worker yet."""
        seen = [self._last_seen[worker] for worker in workers if worker in self._last_seen]
        return bool(seen) and max(seen) < now - LOST_AFTER_S

    async def _replace(self, lost: list[Any]) -> None:
        await self._cluster.scale_down(lost)
        if self._scale is not None:
            self._cluster.scale(self._scale)

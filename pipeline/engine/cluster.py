"""This file finds workers: local processes, a running scheduler, or a cluster that a YAML file describes."""

import contextlib
import importlib
import importlib.util
import logging
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import distributed
import yaml

from pipeline.engine.interrupts import interrupts_held
from pipeline.engine.jobs import Jobs, Refusals, handled_by
from pipeline.engine.watched import ONE_THREAD
from pipeline.errors import CacheError
from pipeline.planning.settings import Workers

CONNECT_S = 20
# A dashboard takes a second to start; a build of fewer tasks is over before anybody looks at it.
TASKS_WORTH_A_DASHBOARD = 100
CLUSTER_KEYS = {"class", "settings", "scale", "adapt"}
DASK_SETTINGS = {
    # A task whose worker has died twice is looked into: clusters take workers away for reasons of their own.
    "distributed.scheduler.allowed-failures": 1,
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,
    # Workers hold results of a few hundred bytes; there is nothing to spill.
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
}


@dataclass(frozen=True, slots=True)
class Connection:
    """A Dask client, and a look after its workers to be taken every few seconds: CacheError where there is no hope."""

    client: Any
    look: Callable[[], None] = lambda: None


@contextlib.contextmanager
def connect(workers: Workers, tasks: int, say: Callable[[str], None]) -> Iterator[Connection]:
    """Connect to workers that will do so many tasks; local processes and clusters end with the connection.

    Raises:
        CacheError: there is no such scheduler or cluster.
    """
    with contextlib.ExitStack() as ending, contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(DASK_SETTINGS))
        # Dask tells at length of losses that are made good or told in a line, and of an end that comes early.
        stack.enter_context(handled_by(logging.NullHandler(), "distributed", "distributed.client"))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Port .* is already in use")  # the dashboard takes another
        if workers.scheduler or workers.scheduler_file:
            found = Connection(stack.enter_context(_client_of_scheduler(workers.scheduler, workers.scheduler_file)))
        elif workers.cluster:
            found = _connect_started(workers.cluster, stack, say)
        else:
            cluster = _start_local(min(workers.local, tasks), tasks, stack)
            found = Connection(stack.enter_context(distributed.Client(cluster)))
        if workers.local == 0 or tasks >= TASKS_WORTH_A_DASHBOARD:
            say(_describe(found.client))
        try:
            yield Connection(found.client, _Presence(found.client, say, found.look).look)
        finally:
            ending.enter_context(interrupts_held())


class _Presence:
    """Tells when the last worker has gone, for then a build waits."""

    def __init__(self, client: Any, say: Callable[[str], None], look: Callable[[], None]) -> None:
        self._client, self._say, self._look = client, say, look
        self._told = not client.nthreads()

    def look(self) -> None:
        self._look()
        if self._client.status != "running":
            return  # the scheduler is about to be given up
        none = not self._client.nthreads()
        if none and not self._told:
            self._say("no Dask worker at the moment: waiting for one")
        self._told = none


def _describe(client: Any) -> str:
    count = len(client.nthreads())
    has_dashboard = "dashboard" in client.scheduler_info()["services"]
    dashboard = f", dashboard {client.dashboard_link}" if has_dashboard else ""
    return f"{count} Dask {'worker' if count == 1 else 'workers'}{' so far' if count == 0 else ''}{dashboard}"


def _start_local(count: int, tasks: int, stack: contextlib.ExitStack) -> Any:
    # A local process dies of what it does, so its task is looked into at once.
    stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
    watch = tasks >= TASKS_WORTH_A_DASHBOARD and importlib.util.find_spec("bokeh") is not None
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pipeline-"))
    with interrupts_held():
        cluster = distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # a port that is free: another build may run beside this one
            scheduler_kwargs={"dashboard": watch},
            local_directory=folder,
            silence_logs=logging.CRITICAL,
        )
        return stack.enter_context(cluster)


def _client_of_scheduler(address: str | None, file: Path | None) -> Any:
    try:
        if file is None:
            return distributed.Client(address, timeout=CONNECT_S)
        if not file.exists():
            raise CacheError(f"--scheduler-file {file}: there is no such file; is `dask scheduler` running?")
        return distributed.Client(scheduler_file=str(file), timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        where = f"--scheduler {address}" if file is None else f"--scheduler-file {file}"
        raise CacheError(f"{where}: no Dask scheduler answers ({error}); start one, or correct the address") from error


def _connect_started(file: Path, stack: contextlib.ExitStack, say: Callable[[str], None]) -> Connection:
    """Start the cluster of a file: `class`, a dotted name; `settings` for it; `scale`, a number, or `adapt`."""
    content = _read_description(file)
    try:
        refusals = Refusals()
        stack.enter_context(handled_by(refusals, "tornado.application", "asyncio"))
        cluster = stack.enter_context(_cluster_class(str(content["class"]))(**content.get("settings") or {}))
        jobs = Jobs(cluster, content.get("scale"), refusals, f"--cluster {file}", say)
        stack.enter_context(jobs.ended())
        if "scale" in content:
            cluster.scale(content["scale"])
        else:
            cluster.adapt(**content["adapt"])
        return Connection(stack.enter_context(cluster.get_client()), jobs.look)
    except Exception as error:  # any class may be named here, with errors of its own
        message = " ".join(str(error).split())
        raise CacheError(f"--cluster {file}: {content['class']}: {type(error).__name__}: {message}") from error


def _read_description(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CacheError(f"--cluster {file}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or "class" not in content or content.keys() - CLUSTER_KEYS:
        raise CacheError(f"--cluster {file}: takes the keys {', '.join(sorted(CLUSTER_KEYS))}; class is needed")
    if ("scale" in content) == ("adapt" in content):
        raise CacheError(f"--cluster {file}: give scale: N, or adapt: {{minimum: N, maximum: N}}, one of them")
    return content


def _cluster_class(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    before = signal.getsignal(signal.SIGINT)
    try:
        return getattr(importlib.import_module(module), attribute)
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)  # dask_jobqueue has Ctrl-C end the process as if all were done

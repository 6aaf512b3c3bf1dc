"""Find workers: local processes, a running scheduler, or a cluster that a YAML file describes."""

import contextlib
import importlib
import importlib.util
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import distributed

from pipeline.engine.interrupts import interrupts_held
from pipeline.engine.jobs import Jobs, Refusals, handled_by
from pipeline.engine.scratch import scratch_folder
from pipeline.engine.watched import ONE_THREAD
from pipeline.errors import CacheError
from pipeline.planning.settings import Workers
from pipeline.planning.yaml_text import read_yaml

CONNECT_S = 20
# Asks the scheduler when it has last heard of each worker, which is much for hundreds of them.
PRESENCE_EVERY_S = 5.0
# A worker tells every second that it is there, unless a decoder holds its interpreter; files have 60 s.
SILENT_AFTER_S = 30.0
CLUSTER_KEYS = {"class", "settings", "scale", "adapt"}
# What clusters are made of that Dask's own projects start.
DASK_PACKAGES = ("distributed", "dask_jobqueue", "dask_kubernetes", "dask_gateway", "dask_cloudprovider", "dask_yarn")
# Pages without a password: what is at work, and how. A port stays open that answers nothing.
NO_PAGES: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
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
    check_workers: Callable[[], None] = lambda: None


@contextlib.contextmanager
def connect(workers: Workers, tasks: int, say: Callable[[str], None]) -> Iterator[Connection]:
    """Connect to workers that will do so many tasks; local processes and clusters end with the connection.

    Local processes talk through TLS with certificates made for this build and kept in memory: on a loopback port
    without it, any user of the machine could have them run code.

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
            found = _connect_started(workers, stack, say)
        else:
            cluster = _start_local(min(workers.local, tasks), dashboard=workers.dashboard, stack=stack)
            found = Connection(stack.enter_context(distributed.Client(cluster)))
        if workers.local == 0 or workers.dashboard:
            say(_describe(found.client))
        if str(found.client.scheduler.address).startswith("tcp://"):
            say(
                "Dask's connections are open (tcp://): anyone who reaches them can run code as you; see "
                "docs/cluster.md for TLS"
            )
        try:
            yield Connection(found.client, _Presence(found.client, say, found.check_workers).check_workers)
        finally:
            ending.enter_context(interrupts_held())


class _Presence:
    """Tells when the last worker has gone, or one is silent, for then a build waits."""

    def __init__(self, client: Any, say: Callable[[str], None], check_workers: Callable[[], None]) -> None:
        self._client, self._say, self._check_workers = client, say, check_workers
        self._told = not client.nthreads()
        self._checked = time.monotonic()
        self._heard: dict[str, tuple[float, float]] = {}  # worker -> what the scheduler's clock said, and ours then
        self._silent: set[str] = set()

    def check_workers(self) -> None:
        self._check_workers()
        if self._client.status != "running":
            return  # the scheduler is about to be given up
        none = not self._client.nthreads()
        if none and not self._told:
            self._say("no Dask worker at the moment: waiting for one")
        self._told = none
        if time.monotonic() - self._checked > PRESENCE_EVERY_S:
            self._checked = time.monotonic()
            self._tell_silent(self._client.scheduler_info()["workers"])

    def _tell_silent(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Say once of a worker that it has not been heard from for a while."""
        now = time.monotonic()
        for address, worker in workers.items():
            if self._heard.get(address, (None, 0.0))[0] != worker["last_seen"]:
                self._heard[address] = worker["last_seen"], now
                self._silent.discard(address)
            elif now - self._heard[address][1] > SILENT_AFTER_S and address not in self._silent:
                self._silent.add(address)
                self._say(
                    f"worker {address} has not been heard from for {SILENT_AFTER_S:.0f} s: has it stopped, or its "
                    "machine failed? Its task waits for it, and goes to another worker after the scheduler's "
                    "worker-ttl"
                )


def _describe(client: Any) -> str:
    count = len(client.nthreads())
    has_dashboard = "dashboard" in client.scheduler_info()["services"]
    dashboard = f", dashboard {client.dashboard_link}" if has_dashboard else ""
    return f"{count} Dask {'worker' if count == 1 else 'workers'}{' so far' if count == 0 else ''}{dashboard}"


def _start_local(count: int, *, dashboard: bool, stack: contextlib.ExitStack) -> Any:
    if dashboard and importlib.util.find_spec("bokeh") is None:
        raise CacheError("--dashboard: Dask draws it with bokeh; run: pip install 'ich-cache[cluster]'")
    # A local process dies of what it does, so its task is looked into at once.
    stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
    if not dashboard:
        stack.enter_context(dask.config.set(NO_PAGES))
    folder = stack.enter_context(scratch_folder())
    with interrupts_held():
        cluster = distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            protocol="tls://",
            security=distributed.Security.temporary(),
            dashboard_address="127.0.0.1:0",  # a port that is free: another build may run beside this one
            scheduler_kwargs={"dashboard": dashboard},
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


def _connect_started(workers: Workers, stack: contextlib.ExitStack, say: Callable[[str], None]) -> Connection:
    """Start the cluster of a file: `class`, a dotted name; `settings` for it; `scale`, a number, or `adapt`."""
    file = workers.cluster
    assert file
    content = _read_description(file)
    _refuse_foreign_class(file, str(content["class"]), any_class=workers.any_class)
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
        return Connection(stack.enter_context(cluster.get_client()), jobs.check_workers)
    except Exception as error:  # any class may be named here, with errors of its own
        message = " ".join(str(error).split())
        raise CacheError(f"--cluster {file}: {content['class']}: {type(error).__name__}: {message}") from error


def _refuse_foreign_class(file: Path, name: str, *, any_class: bool) -> None:
    """Importing a module runs what is in it, so a file may name Dask's clusters alone.

    Raises:
        CacheError: it names something else, and no flag allows it.
    """
    if not any_class and (name.split(".")[0] not in DASK_PACKAGES or not name.endswith("Cluster")):
        raise CacheError(
            f"--cluster {file}: {name} is not a cluster class of {', '.join(DASK_PACKAGES)}, and would run as code; if "
            "you trust it, add --any-cluster-class"
        )


def _read_description(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except (OSError, ValueError) as error:
        raise CacheError(f"--cluster {file}: cannot be read: {error}") from error
    if not isinstance(content, dict) or "class" not in content or content.keys() - CLUSTER_KEYS:
        raise CacheError(f"--cluster {file}: takes the keys {', '.join(sorted(CLUSTER_KEYS))}; class is required")
    if ("scale" in content) == ("adapt" in content):
        raise CacheError(f"--cluster {file}: give either scale: N or adapt: {{minimum: N, maximum: N}}")
    return content


def _cluster_class(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    before = signal.getsignal(signal.SIGINT)
    try:
        return getattr(importlib.import_module(module), attribute)
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)  # dask_jobqueue has Ctrl-C end the process as if all were done

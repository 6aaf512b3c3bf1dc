"""Connect to workers: local processes, a running scheduler, or a cluster that a YAML file describes."""

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

from pipeline.engine.interrupts import interrupts_deferred
from pipeline.engine.jobs import Jobs, SubmitErrors, handled_by
from pipeline.engine.scratch import scratch_folder
from pipeline.engine.watched import ONE_THREAD
from pipeline.errors import CacheError
from pipeline.planning.settings import Workers
from pipeline.planning.yaml_text import read_yaml

CONNECT_S = 20
# How often to ask the scheduler when each worker was last seen: with hundreds of workers, the answer is large.
WORKERS_EVERY_S = 5.0
# A worker sends a heartbeat every second, except while a decoder holds its interpreter lock, at most 60 s per file.
SILENT_AFTER_S = 30.0
CLUSTER_KEYS = {"class", "settings", "scale", "adapt"}
# The packages of the Dask project that define cluster classes.
DASK_PACKAGES = ("distributed", "dask_jobqueue", "dask_kubernetes", "dask_gateway", "dask_cloudprovider", "dask_yarn")
# Dask's pages show the work to anyone, without a password. The port stays open, but serves nothing.
NO_PAGES: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
DASK_SETTINGS = {
    # A task is isolated once two of its workers have died: clusters also remove workers for other reasons.
    "distributed.scheduler.allowed-failures": 1,
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,
    # Workers hold results of a few hundred bytes; there is nothing to spill.
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
}


@dataclass(frozen=True, slots=True)
class Connection:
    """A Dask client, and a check of its workers to call every few seconds; a CacheError means that none can start."""

    client: Any
    check_workers: Callable[[], None] = lambda: None


@contextlib.contextmanager
def connect(workers: Workers, tasks: int, say: Callable[[str], None]) -> Iterator[Connection]:
    """Connect to workers; local processes and clusters started here end with the connection.

    Local processes communicate over TLS, with certificates made for this build and kept in memory: through a plain
    loopback port, any user of the machine could make them run code.

    Args:
        tasks: number of tasks, the largest useful number of local processes.
        say: called with a line about the workers, when the connection is made and when their state changes.

    Raises:
        CacheError: there is no such scheduler, or the cluster cannot be started.
    """
    with contextlib.ExitStack() as ending, contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(DASK_SETTINGS))
        # Dask logs at length about an early end, and about losses that are recovered or reported in one line here.
        stack.enter_context(handled_by(logging.NullHandler(), "distributed", "distributed.client"))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Port .* is already in use")  # the dashboard then uses another
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
            yield Connection(found.client, _WorkerMonitor(found.client, say, found.check_workers).check_workers)
        finally:
            ending.enter_context(interrupts_deferred())


class _WorkerMonitor:
    """Reports that no worker is left, or that one is silent: the build then waits."""

    def __init__(self, client: Any, say: Callable[[str], None], check_workers: Callable[[], None]) -> None:
        self._client, self._say, self._check_workers = client, say, check_workers
        self._none_reported = not client.nthreads()
        self._checked = time.monotonic()
        self._last_seen: dict[str, tuple[float, float]] = {}  # worker -> time by the scheduler's clock and by ours
        self._silent: set[str] = set()

    def check_workers(self) -> None:
        self._check_workers()
        if self._client.status != "running":
            return  # the connection to the scheduler is about to be given up
        none = not self._client.nthreads()
        if none and not self._none_reported:
            self._say("no Dask worker at the moment: waiting for one")
        self._none_reported = none
        if time.monotonic() - self._checked > WORKERS_EVERY_S:
            self._checked = time.monotonic()
            self._report_silent(self._client.scheduler_info()["workers"])

    def _report_silent(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Report each worker once that has sent no heartbeat for a while."""
        now = time.monotonic()
        for address, worker in workers.items():
            if self._last_seen.get(address, (None, 0.0))[0] != worker["last_seen"]:
                self._last_seen[address] = worker["last_seen"], now
                self._silent.discard(address)
            elif now - self._last_seen[address][1] > SILENT_AFTER_S and address not in self._silent:
                self._silent.add(address)
                self._say(
                    f"worker {address} has not responded for {SILENT_AFTER_S:.0f} s; has it stopped, or has its "
                    "machine failed? Its task goes to another worker after the scheduler's worker-ttl"
                )


def _describe(client: Any) -> str:
    count = len(client.nthreads())
    has_dashboard = "dashboard" in client.scheduler_info()["services"]
    dashboard = f", dashboard {client.dashboard_link}" if has_dashboard else ""
    return f"{count} Dask {'worker' if count == 1 else 'workers'}{' so far' if count == 0 else ''}{dashboard}"


def _start_local(count: int, *, dashboard: bool, stack: contextlib.ExitStack) -> Any:
    if dashboard and importlib.util.find_spec("bokeh") is None:
        raise CacheError("--dashboard: Dask needs bokeh for it; run: pip install 'ich-cache[cluster]'")
    # A local process dies only because of its task, so the task is isolated at once.
    stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
    if not dashboard:
        stack.enter_context(dask.config.set(NO_PAGES))
    folder = stack.enter_context(scratch_folder())
    with interrupts_deferred():
        cluster = distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            protocol="tls://",
            security=distributed.Security.temporary(),
            dashboard_address="127.0.0.1:0",  # any free port: another build may be running
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
    """Start the cluster that a YAML file describes.

    Its keys are `class` (a dotted name), `settings` (keyword arguments of the class), and `scale` (a number of
    workers) or `adapt` (keyword arguments of the cluster's method of that name).

    Raises:
        CacheError: the file cannot be read or names a class that is not allowed, or the cluster cannot be started.
    """
    file = workers.cluster
    assert file
    content = _read_description(file)
    _refuse_foreign_class(file, str(content["class"]), any_class=workers.any_class)
    try:
        errors = SubmitErrors()
        stack.enter_context(handled_by(errors, "tornado.application", "asyncio"))
        cluster = stack.enter_context(_cluster_class(str(content["class"]))(**content.get("settings") or {}))
        jobs = Jobs(cluster, content.get("scale"), errors, f"--cluster {file}", say)
        stack.enter_context(jobs.closable())
        if "scale" in content:
            cluster.scale(content["scale"])
        else:
            cluster.adapt(**content["adapt"])
        return Connection(stack.enter_context(cluster.get_client()), jobs.check_workers)
    except Exception as error:  # a class may raise any kind of error
        message = " ".join(str(error).split())
        raise CacheError(f"--cluster {file}: {content['class']}: {type(error).__name__}: {message}") from error


def _refuse_foreign_class(file: Path, name: str, *, any_class: bool) -> None:
    """Raise a CacheError unless the class is one of Dask's clusters, or any class is allowed.

    Importing a module runs its code.
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
            signal.signal(signal.SIGINT, before)  # importing dask_jobqueue makes Ctrl-C exit with code 0

"""Local workers: no other user can reach them, a silent one is reported, and their folders are removed."""

import http.client
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.engine import cluster, scratch
from pipeline.engine.cluster import connect
from pipeline.engine.scratch import scratch_folder
from pipeline.planning.settings import Workers


def listening(process: psutil.Process) -> set[int]:
    """Return the ports on which a process or its children listen."""
    every = [process, *process.children(recursive=True)]
    connections = [connection for each in every for connection in each.net_connections("tcp")]
    return {connection.laddr.port for connection in connections if connection.status == "LISTEN"}


def status_of(port: int, path: str) -> int | None:
    """Return the HTTP status of a page, None if the port does not speak HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (http.client.HTTPException, OSError):
        return None
    finally:
        connection.close()


def tls_greeting(port: int) -> str:
    """Return what happens to a TLS client without a certificate."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with anybody.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=5)) as stream:
        try:
            return "talks" if stream.recv(1) else "hung up"
        except ssl.SSLError as error:
            return error.reason


def test_no_port_of_local_workers_accepts_strangers():
    with connect(Workers(1), 1, lambda line: None) as connection:
        addresses = [connection.client.scheduler.address, *connection.client.scheduler_info()["workers"]]
        assert {address.split(":")[0] for address in addresses} == {"tls"}
        ports = listening(psutil.Process())
        assert len(ports) >= 4
        pages = {
            port: [status_of(port, path) for path in ("/", "/status", "/info/main/workers.html")] for port in ports
        }
        silent = [port for port, found in pages.items() if found == [None] * 3]
        assert {status for found in pages.values() for status in found} <= {None, 404}
        assert len(silent) >= 3, "scheduler, nanny, worker"
        assert {tls_greeting(port) for port in silent} == {"TLSV13_ALERT_CERTIFICATE_REQUIRED"}


class Clock:
    """A replacement for the time module."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Client:
    """A Dask client with one worker, last seen at `last_seen` by a clock that is far behind ours."""

    status, last_seen = "running", 5.0

    def nthreads(self) -> dict[str, int]:
        return {"tls://a": 1}

    def scheduler_info(self) -> dict[str, object]:
        return {"workers": {"tls://a": {"last_seen": self.last_seen}}}


def test_a_silent_worker_is_reported_once_until_it_responds_again(monkeypatch):
    clock, client, said = Clock(), Client(), []
    monkeypatch.setattr(cluster, "time", clock)
    monitor = cluster._WorkerMonitor(client, said.append, lambda: None)

    def pass_seconds(seconds: int, alive: bool) -> int:
        before = len(said)
        for _ in range(seconds):
            clock.now += 1
            client.last_seen += alive
            monitor.check_workers()
        return len(said) - before

    assert pass_seconds(60, alive=True) == 0
    assert pass_seconds(25, alive=False) == 0
    assert pass_seconds(60, alive=False) == 1
    assert "worker tls://a has not responded for 30 s; has it stopped" in said[0]
    assert pass_seconds(20, alive=True) == 0
    assert pass_seconds(40, alive=False) == 1


def test_folders_of_killed_builds_are_removed_and_those_in_use_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from pipeline.engine.scratch import scratch_folder\n"
        "with scratch_folder() as folder: open(folder + '/x', 'w'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    (tmp_path / "pipeline-of-another-program").mkdir()
    [left] = tmp_path.glob("pipeline-*/x")
    with scratch_folder() as first:
        assert not left.parent.exists()
        with scratch_folder() as second:
            assert Path(first).is_dir()
        assert not Path(second).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline-of-another-program"]


def test_the_dashboard_needs_bokeh(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(cluster.CacheError, match=r"Dask needs bokeh for it; run: pip install 'ich-cache\[cluster\]'"),
        connect(Workers(1, dashboard=True), 1, print),
    ):
        pass

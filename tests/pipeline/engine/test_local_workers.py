"""Local workers: nobody else on the machine reaches them, a stopped one is told of, and their folders go."""

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
    """Ports on which a process or its children listen."""
    every = [process, *process.children(recursive=True)]
    return {at.laddr.port for one in every for at in one.net_connections("tcp") if at.status == "LISTEN"}


def ask(port: int, path: str) -> int | None:
    """The status of a page; None where something other than HTTP answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (http.client.HTTPException, OSError):
        return None
    finally:
        connection.close()


def greet(port: int) -> str:
    """What becomes of a TLS client that has no certificate."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with anybody.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=5)) as stream:
        try:
            return "talks" if stream.recv(1) else "hung up"
        except ssl.SSLError as error:
            return error.reason


def test_no_port_of_local_workers_answers_a_stranger():
    with connect(Workers(1), 1, lambda line: None) as connection:
        addresses = [connection.client.scheduler.address, *connection.client.scheduler_info()["workers"]]
        assert {address.split(":")[0] for address in addresses} == {"tls"}
        ports = listening(psutil.Process())
        assert len(ports) >= 4
        pages = {port: [ask(port, path) for path in ("/", "/status", "/info/main/workers.html")] for port in ports}
        silent = [port for port, found in pages.items() if found == [None] * 3]
        assert {status for found in pages.values() for status in found} <= {None, 404}
        assert len(silent) >= 3, "scheduler, nanny, worker"
        assert {greet(port) for port in silent} == {"TLSV13_ALERT_CERTIFICATE_REQUIRED"}


class Clock:
    """Stands for the time module."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Client:
    """A Dask client of one worker that was last heard of at `last_seen`, by a clock that runs far behind ours."""

    status, last_seen = "running", 5.0

    def nthreads(self) -> dict[str, int]:
        return {"tls://a": 1}

    def scheduler_info(self) -> dict[str, object]:
        return {"workers": {"tls://a": {"last_seen": self.last_seen}}}


def test_a_worker_that_is_silent_is_told_of_once_until_it_is_heard_again(monkeypatch):
    clock, client, said = Clock(), Client(), []
    monkeypatch.setattr(cluster, "time", clock)
    presence = cluster._WorkerMonitor(client, said.append, lambda: None)

    def pass_seconds(seconds: int, alive: bool) -> int:
        before = len(said)
        for _ in range(seconds):
            clock.now += 1
            client.last_seen += alive
            presence.check_workers()
        return len(said) - before

    assert pass_seconds(60, alive=True) == 0
    assert pass_seconds(25, alive=False) == 0
    assert pass_seconds(60, alive=False) == 1
    assert "worker tls://a has not responded for 30 s; has it stopped" in said[0]
    assert pass_seconds(20, alive=True) == 0
    assert pass_seconds(40, alive=False) == 1


def test_folders_of_killed_builds_go_and_those_in_use_stay(tmp_path, monkeypatch):
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


def test_pages_for_everybody_only_when_asked(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(cluster.CacheError, match=r"bokeh; run: pip install 'ich-cache\[cluster\]'"),
        connect(Workers(1, dashboard=True), 1, print),
    ):
        pass

"""A worker that is really stopped, by SIGSTOP, is reported, and the build finishes once it continues."""

import os
import signal

import psutil

from pipeline.engine import cluster
from pipeline.planning import survey
from testkit.faulty import Faulty
from testkit.small import Small, run, write_slices
from tests.pipeline.engine.test_engine import after_shards


def test_a_stopped_worker_is_reported_and_finishes_its_shard_once_it_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "open_source", lambda src: Faulty(src, pause_s=0.05))
    monkeypatch.setattr(cluster, "SILENT_AFTER_S", 2.0)
    monkeypatch.setattr(cluster, "WORKERS_EVERY_S", 0.5)
    small = Small(tmp_path, rows=4)
    write_slices(small.src, range(40))
    stopped: list[int] = []
    report_silent = cluster._WorkerMonitor._report_silent

    def stop_one() -> None:
        workers = [
            child.pid
            for child in psutil.Process().children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline()) and child.num_threads() > 3
        ]
        os.kill(workers[-1], signal.SIGSTOP)
        stopped.append(workers[-1])

    def continue_when_reported(self, workers) -> None:
        report_silent(self, workers)
        if self._silent:
            os.kill(stopped[0], signal.SIGCONT)

    after_shards(monkeypatch, 1, stop_one)
    monkeypatch.setattr(cluster._WorkerMonitor, "_report_silent", continue_when_reported)
    said = run("build", *small.options(), "--workers", 2).stderr
    assert "has not responded for 2 s; has it stopped, or has its machine failed?" in said
    assert small.digest() == small.clean_digest(tmp_path / "clean")

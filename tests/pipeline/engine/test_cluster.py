"""A Dask cluster of real processes over TCP builds the same cache as one process, whichever part of it dies."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipeline.engine import cluster as engine_cluster
from pipeline.planning import survey
from testkit.faulty import Faulty
from testkit.small import Small, run, write_slices
from tests.pipeline.engine.test_engine import after_shards

ROOT = Path(__file__).parents[3]
WORKER = ("worker", "--nthreads", "1", "--no-dashboard")


@dataclass
class Cluster:
    """`dask scheduler` and `dask worker` processes that find each other through a scheduler file."""

    file: Path
    scheduler: subprocess.Popen
    workers: list[subprocess.Popen] = field(default_factory=list)

    def add_worker(self, *options: str, modules: Path = ROOT) -> None:
        """Start a worker that imports from the folder `modules` first."""
        command = (*WORKER, "--scheduler-file", str(self.file), *options)
        self.workers.append(_dask(self.file.parent, *command, modules=modules))


def _dask(folder: Path, *arguments: str, modules: Path = ROOT) -> subprocess.Popen:
    with (folder / "dask.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, "--local-directory", str(folder)]
            if arguments[0] == "worker"
            else [sys.executable, "-m", "dask", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(modules)},
            stdout=log,
            stderr=log,
        )


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    """A running scheduler, without workers."""
    folder = tmp_path / "dask"
    folder.mkdir()
    file = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    cluster = Cluster(file, _dask(folder, "scheduler", *options))
    try:
        while not file.exists():
            assert cluster.scheduler.poll() is None, (folder / "dask.log").read_text()
            time.sleep(0.05)
        yield cluster
    finally:
        for process in (*cluster.workers, cluster.scheduler):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


@pytest.fixture
def small(tmp_path, monkeypatch) -> Small:
    """40 slices in 10 shards, each of which takes a while."""
    monkeypatch.setattr(survey, "open_source", lambda src: Faulty(src, pause_s=0.05))
    small = Small(tmp_path, rows=4)
    write_slices(small.src, range(40))
    return small


def records(small: Small) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (small.out / ".pipeline" / "shards").glob("*.json")}


def test_two_workers_build_the_cache_even_if_one_dies(small, cluster, monkeypatch):
    cluster.add_worker("--no-nanny")
    cluster.add_worker()
    after_shards(monkeypatch, 2, cluster.workers[0].kill)
    outcome = run("build", *small.options(), "--scheduler-file", cluster.file)
    assert re.search(r"\d Dask worker", outcome.stderr)
    assert small.digest() == small.clean_digest(small.folder / "clean")


def test_a_result_lost_with_its_worker_does_not_rebuild_its_shard(small, cluster, monkeypatch):
    """Dask keeps a result on its worker until the builder fetches it, and runs the task again if it is lost."""
    cluster.add_worker()
    seen: dict[str, int] = {}

    def lose_results() -> None:
        while len(records(small)) < 4:
            time.sleep(0.02)
        for child in psutil.Process(cluster.workers[0].pid).children():  # its nanny restarts it
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        seen.update(records(small))

    after_shards(monkeypatch, 1, lose_results)
    run("build", *small.options(), "--scheduler-file", cluster.file)
    assert seen.items() <= records(small).items()
    assert small.digest() == small.clean_digest(small.folder / "clean")


def test_a_result_lost_with_the_last_worker_does_not_block_the_build(small, cluster, monkeypatch):
    """While the builder waits for a lost result, nothing would check the workers or report that none is left."""
    cluster.add_worker("--no-nanny")
    check_workers, killed, others = engine_cluster._WorkerMonitor.check_workers, threading.Event(), []
    too_late = threading.Timer(20, lambda: others.append("too late") or cluster.add_worker())

    def add_when_reported(self) -> None:
        check_workers(self)
        if killed.is_set() and self._none_reported and not others:
            others.append("in time")
            cluster.add_worker()

    def lose_results() -> None:
        while len(records(small)) < 4:
            time.sleep(0.02)
        cluster.workers[0].kill()
        killed.set()
        too_late.start()

    monkeypatch.setattr(engine_cluster._WorkerMonitor, "check_workers", add_when_reported)
    after_shards(monkeypatch, 1, lose_results)
    outcome = run("build", *small.options(), "--scheduler-file", cluster.file)
    too_late.cancel()
    assert others == ["in time"]
    assert "no Dask worker at the moment: waiting for one" in outcome.stderr
    assert small.digest() == small.clean_digest(small.folder / "clean")


def test_a_killed_scheduler_is_one_line_and_finished_shards_are_kept(small, cluster, monkeypatch):
    cluster.add_worker()
    after_shards(monkeypatch, 3, cluster.scheduler.kill)
    outcome = run("build", *small.options(), "--scheduler-file", cluster.file, code=1)
    assert "error: the Dask scheduler is gone; finished shards are kept" in outcome.stderr
    done = records(small)
    assert 3 <= len(done) < 10
    monkeypatch.undo()
    small.build()
    assert done.items() <= records(small).items()
    assert small.digest() == small.clean_digest(small.folder / "clean")


def test_a_worker_with_several_threads_is_refused(small, cluster):
    cluster.add_worker("--nthreads", "2")
    outcome = run("build", *small.options(), "--scheduler-file", cluster.file, code=1)
    assert "has 2 threads" in outcome.stderr
    assert not records(small)


def test_a_worker_without_this_package_is_one_line_and_survives(small, cluster):
    (small.folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'pipeline':\n"
        "            raise ModuleNotFoundError(\"No module named 'pipeline'\", name='pipeline')\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    cluster.add_worker("--no-nanny", modules=small.folder)
    outcome = run("build", *small.options(), "--scheduler-file", cluster.file, code=1)
    assert "error: a worker cannot load its task: No module named 'pipeline'; install the same" in outcome.stderr
    assert cluster.workers[0].poll() is None


def test_a_worker_with_another_decoder_is_one_line(small, cluster):
    about = small.folder / "pydicom-3.0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pydicom\nVersion: 3.0.0\n")
    cluster.add_worker("--no-nanny", modules=small.folder)
    outcome = run("build", *small.options(), "--scheduler-file", cluster.file, code=1)
    assert re.search(r"error: worker on .*: pydicom 3\.0\.0, the build was started with", outcome.stderr)


def test_a_cluster_is_started_from_its_description(small):
    description = small.folder / "local.yaml"
    description.write_text(
        "class: distributed.LocalCluster\n"
        "settings: {n_workers: 0, threads_per_worker: 1, dashboard_address: null}\n"
        "adapt: {minimum: 0, maximum: 2}\n"
    )
    run("build", *small.options(), "--cluster", description)
    assert small.digest() == small.clean_digest(small.folder / "clean")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: {}", "takes the keys adapt, class, scale, settings; class is required"),
        ("class: distributed.LocalCluster\nworkers: 3", "takes the keys"),
        ("class: distributed.LocalCluster", "give either scale: N or adapt:"),
        ("class: dask_yarn.SLURMCluster\nscale: 2", "ModuleNotFoundError: No module named 'dask_yarn'"),
        ("class: distributed.LocalKCluster\nscale: 2", "AttributeError: "),
        ("class: os.system\nscale: 2", "os.system is not a cluster class of distributed, dask_jobqueue, "),
        ("class: distributed.Client\nscale: 2", "distributed.Client is not a cluster class of"),
        ("class: evil.DaskCluster\nscale: 2", "would run as code; if you trust it, add --any-cluster-class"),
        ("class: distributed.LocalCluster\nsettings: {wrong: 1}\nscale: 2", "local.yaml: distributed.LocalCluster: "),
        ("class: [", "cannot be read"),
    ],
)
def test_an_invalid_description_is_one_line(small, text, message):
    description = small.folder / "local.yaml"
    description.write_text(text)
    outcome = run("build", *small.options(), "--cluster", description, code=1)
    assert message in outcome.stderr
    assert len([line for line in outcome.stderr.splitlines() if "error" in line]) == 1


def test_a_foreign_class_is_imported_only_with_the_flag(small, monkeypatch):
    description, ran = small.folder / "local.yaml", small.folder / "ran"
    description.write_text("class: foreign.Cluster\nscale: 1\n")
    (small.folder / "foreign.py").write_text(f"open({str(ran)!r}, 'w')\nCluster = None\n")
    monkeypatch.syspath_prepend(small.folder)
    run("build", *small.options(), "--cluster", description, code=1)
    assert not ran.exists()
    said = run("build", *small.options(), "--cluster", description, "--any-cluster-class", code=1).stderr
    assert ran.exists()
    assert "foreign.Cluster: TypeError" in said


def test_a_missing_scheduler_is_one_line(small, monkeypatch):
    monkeypatch.setattr(engine_cluster, "CONNECT_S", 0.5)
    outcome = run("build", *small.options(), "--scheduler", "tcp://127.0.0.1:9", code=1)
    assert "--scheduler tcp://127.0.0.1:9: no Dask scheduler answers" in outcome.stderr
    outcome = run("build", *small.options(), "--scheduler", "nonsense://x", code=1)
    assert "--scheduler nonsense://x: no Dask scheduler answers" in outcome.stderr
    outcome = run("build", *small.options(), "--scheduler-file", small.folder / "none.json", code=1)
    assert "none.json: there is no such file" in outcome.stderr


def test_options_for_two_kinds_of_workers_are_refused(small):
    outcome = run("build", *small.options(), "--workers", 2, "--scheduler", "tcp://127.0.0.1:9", code=2)
    assert "--workers and --scheduler both say where tasks run" in outcome.stderr

"""A real SLURM cluster of one node: jobs from sbatch build the same cache, whatever is cancelled or killed."""

import getpass
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine import cluster as engine_cluster
from pipeline.engine import jobs
from pipeline.planning import survey
from testkit.faulty import Faulty
from testkit.small import Small, run, write_slices
from tests.pipeline.engine.test_cluster import records
from tests.pipeline.engine.test_engine import after_shards

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "slurm_node.sh"
PAGE = ROOT / "docs" / "cluster.md"
PAUSE_S = 0.2


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[None]:
    """SLURM on this machine, started as docs/cluster.md describes."""
    if importlib.util.find_spec("dask_jobqueue") is None:  # importing it would make Ctrl-C exit with code 0
        pytest.skip("dask-jobqueue is not installed (extra cluster)")
    folders = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name, path=folders)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: scripts/slurm_node.sh says how")
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(ROOT))
        subprocess.run(["bash", SCRIPT, "start", folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["bash", SCRIPT, "stop", folder], check=True)


@pytest.fixture
def small(tmp_path, slurm, monkeypatch) -> Small:
    """24 slices in 6 shards, each of which takes about a second."""
    monkeypatch.setattr(survey, "open_source", lambda src: Faulty(src, pause_s=PAUSE_S))
    small = Small(tmp_path, rows=4)
    write_slices(small.src, range(24))
    return small


def options(small: Small, workers: int = 1, memory: str = "1GB", more: str = "") -> list[str]:
    """Return the options of a build with one job of `workers` workers; `more` is appended to the cluster's settings."""
    description = small.folder / "slurm.yaml"
    description.write_text(
        "class: dask_jobqueue.SLURMCluster\n"
        f"settings: {{queue: normal, cores: {workers}, processes: {workers}, job_cpu: 1, walltime: '00:05:00',\n"
        f"           interface: lo, memory: {memory}, log_directory: {small.folder}/jobs{more}}}\n"
        f"scale: {workers}\n"
    )
    return [*small.options(), "--cluster", str(description)]


def queue() -> list[str]:
    return subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True).stdout.split()


def no_job_remains() -> bool:
    """Wait for the queue to become empty; a cancelled job takes a second or two to end."""
    for _ in range(300):
        if not queue():
            return True
        time.sleep(0.1)
    return False


def test_a_cancelled_job_is_resubmitted_and_loses_only_its_running_shards(small, monkeypatch):
    monkeypatch.setattr(jobs, "LOST_AFTER_S", 1.0)
    seen: dict[str, int] = {}

    def cancel() -> None:
        seen.update(records(small))
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], check=True)

    after_shards(monkeypatch, 2, cancel)
    outcome = run("build", *options(small, workers=2))
    assert "1 job lost, submitting again" in outcome.stderr
    assert len(seen) >= 2
    assert seen.items() <= records(small).items()
    assert small.digest() == small.clean_digest(small.folder / "clean")
    assert no_job_remains()


def started_build(small: Small) -> subprocess.Popen[str]:
    """Start a build in another process, and return that process once it has finished a shard."""
    script = small.folder / "command.py"
    script.write_text(
        "from pipeline.planning import survey\nfrom pipeline.cli.main import main\nfrom testkit.faulty import Faulty\n"
        f"survey.open_source = lambda src: Faulty(src, pause_s={PAUSE_S})\nmain()\n"
    )
    command = [sys.executable, str(script), "build", *options(small)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if the tests run in the background
    )
    while not records(small):
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_a_killed_build_leaves_no_job_and_can_be_resumed(small):
    process = started_build(small)
    process.kill()
    process.communicate()
    done = records(small)
    assert 1 <= len(done) < 6
    assert "a build was interrupted" in run("build", *options(small)).stderr
    assert done.items() <= records(small).items()
    assert small.digest() == small.clean_digest(small.folder / "clean")
    assert no_job_remains()


def test_ctrl_c_also_ends_the_jobs(small):
    """Importing dask_jobqueue makes Ctrl-C exit with code 0."""
    process = started_build(small)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "interrupted; finished work is kept" in said
    assert "Traceback" not in said
    assert no_job_remains()


def test_a_refused_job_is_one_line(small):
    outcome = run("build", *options(small, memory="900TB"), code=1)
    (line,) = [line for line in outcome.stderr.splitlines() if "error" in line]
    assert "slurm.yaml: no worker could be started: sbatch: error: Memory" in line
    assert no_job_remains()


def test_jobs_use_tls_with_the_documented_settings(small, monkeypatch):
    own = small.folder / "certificates"
    own.mkdir(mode=0o700)
    [words] = re.findall(r"For SLURM, add (.*?) to the settings", " ".join(PAGE.read_text().split()))
    more = "".join(f", {setting}" for setting in re.findall(r"`([^`]+: [^`]+)`", words)).replace("FOLDER", str(own))
    assert "tls://" in more
    seen: list[str] = []
    describe = engine_cluster._describe

    def describing(client) -> str:
        seen.append(client.scheduler.address)
        return describe(client)

    monkeypatch.setattr(engine_cluster, "_describe", describing)
    said = run("build", *options(small, more=more)).stderr
    assert seen[0].startswith("tls://")
    assert "tcp://" not in said
    assert small.digest() == small.clean_digest(small.folder / "clean")
    assert no_job_remains()

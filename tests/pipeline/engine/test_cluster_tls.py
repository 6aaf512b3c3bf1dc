"""The TLS commands of docs/cluster.md, run as they are written there."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from testkit.small import Small, run, write_slices
from tests.pipeline.engine.test_local_workers import tls_greeting

ROOT = Path(__file__).parents[3]
DOC = ROOT / "docs" / "cluster.md"


def commands() -> str:
    """Return the code block of the page that makes certificates and starts a scheduler."""
    blocks = re.findall(r"```bash\n(.*?)```", DOC.read_text(), re.DOTALL)
    [block] = [block for block in blocks if "openssl" in block]
    return block


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A separate home folder with `dask` and `pipeline` in `bin`, and a folder to use as /shared."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    for name, module in (("dask", "-m dask"), ("pipeline", "-c 'from pipeline.cli.main import main; main()'")):
        (home / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (home / "bin" / name).chmod(0o755)
    (home / "shared").mkdir()
    return home


def environment(home: Path) -> dict[str, str]:
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "DASK_CONFIG": ""}


@contextlib.contextmanager
def started(home: Path, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script in a shell; the shell and what it starts in the background end with the block."""
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(["bash", "-ec", f"{script}\nwait"], env=environment(home), stdout=log, stderr=log)
    try:
        yield process
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


def test_the_documented_commands_start_a_scheduler_that_requires_a_certificate(home, tmp_path):
    small = Small(tmp_path / "small", rows=4)
    small.folder.mkdir()
    write_slices(small.src, range(6))
    file = home / "shared" / "dask.json"
    scheduler = commands().replace("/shared/", f"{home}/shared/").replace("dask scheduler", "dask scheduler --port 0")
    worker = f"dask worker --scheduler-file {file} --nthreads 1 --no-dashboard --local-directory {home}/shared &"
    with started(home, scheduler) as shell:
        while not file.exists():
            assert shell.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
        assert oct((home / ".config" / "dask" / "ich.key").stat().st_mode)[-3:] == "600"
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tls://")
        assert tls_greeting(int(address.rsplit(":", 1)[1])) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        with started(home, worker):
            build = ["pipeline", "build", *small.options(), "--scheduler-file", str(file)]
            done = subprocess.run(build, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + (home / "log").read_text()
    assert "tcp://" not in done.stderr
    run("verify", small.out)
    assert small.digest() == small.clean_digest(tmp_path / "clean")

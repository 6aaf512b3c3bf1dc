"""Builds give the same cache on operating systems that lack system calls of Linux."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.small import Small, write_slices

ROOT = Path(__file__).parents[2]
# Names that macOS and Windows lack; they are removed before our modules are imported.
MISSING = {
    "macOS": ("", "sched_getaffinity fdatasync RWF_NOWAIT O_DIRECT preadv", ""),
    "Windows": (
        "fcntl resource",
        "sched_getaffinity fdatasync RWF_NOWAIT O_DIRECT preadv pread pwrite O_DIRECTORY O_NONBLOCK O_CLOEXEC",
        "setitimer pthread_sigmask SIGALRM SIGHUP",
    ),
}
BARE = """
import os, signal, sys
modules, calls, signals = (text.split() for text in sys.argv[1:4])
import dask, distributed, multiprocessing.resource_tracker, numba, zarr  # these handle other systems themselves
for name in modules: sys.modules[name] = None
for name in calls: delattr(os, name)
for name in signals: delattr(signal, name)
import json
from pipeline.cli.main import main
for arguments in json.loads(sys.argv[4]):
    try: main(arguments)
    except SystemExit as end:
        if end.code: raise
"""


def bare(system: str, *commands: list[object]) -> "subprocess.CompletedProcess[str]":
    """Run commands of `pipeline` one after another in one process, until one fails."""
    given = json.dumps([[str(argument) for argument in command] for command in commands])
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", BARE, *MISSING[system], given],
        capture_output=True,
        text=True,
        env=where,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("system", MISSING)
def test_a_build_without_these_names_gives_the_same_cache(tmp_path: Path, system: str) -> None:
    small, usual = Small(tmp_path / "bare"), Small(tmp_path / "usual")
    for made in (small, usual):
        write_slices(made.src, range(6))
    usual.build()
    out = str(small.out)
    done = bare(
        system,
        ["build", *small.options(), "--workers", "0"],
        ["verify", out],
        ["info", out, "--digest"],
        ["info", usual.out, "--digest"],
    )
    assert done.returncode == 0, done.stderr
    *_, digest, of_usual = done.stdout.split()
    assert digest == of_usual == usual.digest()


def test_a_cache_is_locked_without_fcntl(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    small.build()
    held = f"""
import sys, pathlib
sys.modules["fcntl"] = None
from pipeline.cache.lock import lock
from pipeline.cache.paths import Cache
with lock(Cache(pathlib.Path({str(small.out)!r}))):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", held],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    refused = bare("Windows", ["build", *small.options(), "--workers", "0"])
    holder.communicate("", timeout=60)
    assert refused.returncode == 1
    assert "is working on it" in refused.stderr
    assert bare("Windows", ["build", *small.options(), "--workers", "0"]).returncode == 0

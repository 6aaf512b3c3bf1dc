"""This file kills commands on a cache, over and over: no view may be torn, and the same command must finish the work.

    python benchmarks/kills.py [--random 100] [--write-step 5]

1. By strace, at each rename, unlink, fsync and mkdir and at a sample of writes, of a build that adds and removes files,
   of one with a new window, of new labels (the commit alone), of a gc and of a repair. A reader opens the cache and
   checks pixels against the table all the while, except where gc or damage takes away what it may be in.
2. At random times, the whole process group or the parent alone, of builds with two local workers.

After each kill the same command runs again; then `verify` must find nothing, the digest must be a clean build's, and
no shard that had a record may have been written again.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.pipeline.kills import LEVELS, Victim, reader, strace_works
from tests.pipeline.small import run

SYSCALLS = ("rename", "unlink", "fsync", "mkdir", "write")
COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]


def kill_at_each_step(write_step: int) -> None:
    views = kills = torn = 0
    for act in ("change", "rewindow", "relabel", "collect", "damage"):
        for syscall in SYSCALLS:
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                victim = Victim.make(Path(folder))
                seen = None
                if act not in ("collect", "damage"):
                    valid = victim.valid_images(LEVELS if act == "rewindow" else LEVELS[:1])
                    seen = stack.enter_context(reader(victim.small.out, valid))
                done = victim.kill_at_each(getattr(victim, act), syscall, write_step if syscall == "write" else 1)
                stack.close()
                kills += done
                views += seen.views if seen else 0
                torn += seen.wrong if seen else 0
            print(f"{act:>9} {syscall:>7}: {done} kills", flush=True)
    print(f"{kills} kills at system calls; {views:,} views by the reader, {torn} torn; every digest as it must be")


def kill_at_random(times: int, seed: int) -> None:
    rng, views, torn, killed, commits = np.random.default_rng(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim.make(Path(folder))
        with reader(victim.small.out, victim.valid_images(LEVELS[:1])) as seen:
            for number in range(times):
                command = [str(word) for word in victim.change()]
                command[command.index("--workers") + 1] = "2"
                process = subprocess.Popen(
                    [*COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
                )
                time.sleep(rng.uniform(0.2, 4.0))
                killed += process.poll() is None
                with contextlib.suppress(ProcessLookupError):
                    if number % 2:
                        os.kill(process.pid, signal.SIGKILL)  # its workers may go on for a while
                    else:
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                run(*victim_command(victim))
                victim.check()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        views, torn, commits = seen.views, seen.wrong, seen.commits
    print(f"{killed} kills at random times; {views:,} views of {commits} commits by the reader, {torn} torn")


def victim_command(victim: Victim) -> list[object]:
    return ["build", *victim.small.options(), "--workers", 0, "--prune"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--random", type=int, default=100)
    options.add_argument("--write-step", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if strace_works():
        kill_at_each_step(given.write_step)
    else:
        print("no strace, or no right to trace a child: kills at system calls are left out")
    kill_at_random(given.random, given.seed)


if __name__ == "__main__":
    main()

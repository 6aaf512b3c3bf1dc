"""Kill commands on a cache repeatedly: no view may be torn, and the same command must finish the work.

    python benchmarks/kills.py [--random 100] [--step 1] [--write-step 5] [--src FOLDER]

1. With strace, at each rename, unlink, fsync and mkdir and at a sample of writes, in a first build, in one that adds
   and removes files, in one with a new window, with new labels (only the commit), in a gc and in a repair. Meanwhile a
   reader opens the cache and checks pixels against the table, unless there is no cache yet, or gc or damage removes
   what it may be reading.
2. At random times, the whole process group or only the parent, in builds with two local workers.

After each kill the same command runs again; then `verify` must find nothing, the digest must be that of a clean build,
and no shard with a done-record may have been written again. The slices are synthetic, or those of FOLDER; --step 7
kills only at every seventh call.
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

from testkit.kills import LEVELS, Victim, reader, strace_works
from testkit.small import MADE_UP, Deck, run

SYSCALLS = ("rename", "unlink", "fsync", "mkdir", "write", "writev", "pwrite64")
COMMAND = [sys.executable, "-c", "from pipeline.cli.main import main; main()"]


def kill_at_each_step(deck: Deck, slices: int, step: int, write_step: int) -> None:
    views = kills = torn = 0
    for act in ("begin", "change", "rewindow", "relabel", "collect", "damage"):
        for syscall in SYSCALLS:
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                victim = Victim.make(Path(folder), deck, slices)
                seen = None
                if act in ("change", "rewindow", "relabel"):
                    valid = victim.valid_images(LEVELS if act == "rewindow" else LEVELS[:1])
                    seen = stack.enter_context(reader(victim.small.out, valid))
                done = victim.kill_at_each(getattr(victim, act), syscall, write_step if "write" in syscall else step)
                stack.close()
                kills += done
                views += seen.views if seen else 0
                torn += seen.wrong if seen else 0
            print(f"{act:>9} {syscall:>7}: {done} kills", flush=True)
    print(f"{kills} kills at system calls; {views:,} views by the reader, {torn} torn; every digest correct")


def kill_at_random(deck: Deck, slices: int, times: int, seed: int) -> None:
    rng, views, torn, killed, commits = np.random.default_rng(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim.make(Path(folder), deck, slices)
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
                        os.kill(process.pid, signal.SIGKILL)  # its workers may continue for a while
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
    options.add_argument("--step", type=int, default=1)
    options.add_argument("--write-step", type=int, default=5)
    options.add_argument("--src", type=Path, help="at least 5 uncompressed slices")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    deck = Deck.of(given.src) if given.src else MADE_UP
    slices = len(deck.files) - 1 if deck.files else 12
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if strace_works():
        kill_at_each_step(deck, slices, given.step, given.write_step)
    else:
        print("strace is missing or not permitted: kills at system calls are skipped")
    kill_at_random(deck, slices, given.random, given.seed)


if __name__ == "__main__":
    main()

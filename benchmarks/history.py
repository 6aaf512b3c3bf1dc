"""Replay random histories of a source and its settings, which must leave no trace in the cache's content.

    python benchmarks/history.py [--histories 200] [--changes 5] [--src FOLDER]

Each history adds, changes, touches, renames, copies and removes files, changes labels, windows, sizes and how files are
read, and builds now and then. Each build must read and write the files and shards that its plan named, and the final
digest must be that of a clean build. The slices are synthetic, or those of FOLDER.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.history import check_history
from testkit.small import MADE_UP, Deck


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--histories", type=int, default=200)
    options.add_argument("--changes", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--src", type=Path, help="at least 13 uncompressed slices")
    given = options.parse_args()
    deck = Deck.of(given.src) if given.src else MADE_UP
    os.fsync = lambda handle: None  # type: ignore[assignment]  # nothing is killed, so nothing must be durable
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    started, builds, steps = time.perf_counter(), 0, 0
    for seed in range(given.seed, given.seed + given.histories):
        with tempfile.TemporaryDirectory() as folder:
            history = check_history(Path(folder), seed, given.changes, deck)
        builds += history.steps.count("build")
        steps += len(history.steps) - history.steps.count("build")
    print(f"{given.histories} histories, {steps:,} changes, {builds:,} builds in {time.perf_counter() - started:.0f} s")
    print("all digests equal those of clean builds; all builds did what their plans said")


if __name__ == "__main__":
    main()

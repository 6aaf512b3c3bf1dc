"""Flip single bits of a cache and of a run with a head, and run a command that reads the file.

    python benchmarks/flips.py [--flips 1000] [--seed 0] [--scene cache] [--commands evaluate,predict]

The command must name the file in one line, or give the same result as without damage. `bitrot.py` tests only `pipeline
verify` and `--repair`; this benchmark tests every command that opens the file.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.flips import SCENES, Outcomes, flip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--flips", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--scene", choices=[*SCENES, ""], default="", help="run only this scene")
    options.add_argument("--commands", default="", help="run only these commands, comma-separated")
    given = options.parse_args()
    logging.disable()
    names = [name for name in given.commands.split(",") if name]
    outcomes, started = Outcomes(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scenes = [make(Path(folder, name), names) for name, make in SCENES.items() if given.scene in ("", name)]
        for scene in scenes:
            unread = [name for name in scene.files if name not in scene.readers]
            print(
                f"{scene.folder.parent.name}: {len(scene.readers)} files are read by commands; not read: {unread}",
                flush=True,
            )
        for number in range(given.flips):
            before = len(outcomes.wrong)
            flip(scenes[number % len(scenes)], np.random.default_rng([given.seed, number]), outcomes)
            for wrong in outcomes.wrong[before:]:
                print(f"flip {number}: {wrong}", flush=True)
    reported, unchanged = outcomes.reported.total(), outcomes.unchanged.total()
    print(f"{given.flips} flips: {reported} reported, {unchanged} without effect, {len(outcomes.wrong)} wrong")
    for name in sorted({*outcomes.reported, *outcomes.unchanged}):
        print(f"  {name}: {outcomes.reported[name]} reported, {outcomes.unchanged[name]} without effect")
    print(
        f"{dict(sorted(outcomes.kinds.items()))}; {time.perf_counter() - started:.0f} s, {os.times().user:.0f} s of CPU"
    )
    sys.exit(bool(outcomes.wrong))


if __name__ == "__main__":
    main()

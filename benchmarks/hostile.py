"""Run commands on hostile inputs: caches, archives, catalogs, label files and run folders.

    python benchmarks/hostile.py [--inputs 300] [--seed 0] [--kinds cache]

They are made from valid inputs by seeded edits of paths, numbers, types and structure. None may cause writes outside
its folders, end a command in a traceback, hang it (10 s of computing, or two minutes of waiting), make it print more
than 100 KB, or silently change a pixel, a label, a weight or a split. To add a kind of input, add a function to
`testkit/hostile/`.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.hostile import caches, runs, sources
from testkit.hostile.engine import Campaign, attack


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--inputs", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kinds", default="", help="run only kinds whose names begin with this")
    given = options.parse_args()
    logging.disable()
    campaign, each, printed, started = Campaign(), Counter[str](), 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        made = {
            name: module.kinds(top / name) for name, module in (("cache", caches), ("run", runs), ("source", sources))
        }
        kinds = {name: kind for of in made.values() for name, kind in of.items() if name.startswith(given.kinds)}
        for number in range(given.inputs):
            name = list(kinds)[number % len(kinds)]
            attack(kinds[name], top / "around" / str(number), np.random.default_rng([given.seed, number]), campaign)
            each[name] += 1
            for wrong in campaign.wrong[printed:]:
                print(f"{name}, input {number}: {wrong}", flush=True)
            printed = len(campaign.wrong)
    seconds = time.perf_counter() - started
    print(f"{campaign.inputs} hostile inputs, {campaign.refused} refused; {len(campaign.wrong)} wrong; {seconds:.0f} s")
    print(", ".join(f"{count} {name}" for name, count in each.items()))
    sys.exit(bool(campaign.wrong))


if __name__ == "__main__":
    main()

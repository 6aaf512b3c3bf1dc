"""Try commands on hostile inputs: caches, archives, catalogs, label files and run folders.

    python benchmarks/hostile.py [--inputs 300] [--seed 0] [--kinds cache]

Seeded edits make them of valid ones, by path, number, type and structure. None may write outside its folders, end a
command in a traceback, hang it (10 s of computing, or two minutes of waiting), have it say over 100 KB, or be believed
and change a pixel, a label, a weight or a split. A new kind of input is a function in `testkit/hostile/`.
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
from testkit.hostile.engine import Tried, attack


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--inputs", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kinds", default="", help="Only those whose name begins so.")
    given = options.parse_args()
    logging.disable()
    tried, each, said, started = Tried(), Counter[str](), 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        made = {name: room.kinds(top / name) for name, room in (("cache", caches), ("run", runs), ("source", sources))}
        kinds = {name: kind for of in made.values() for name, kind in of.items() if name.startswith(given.kinds)}
        for number in range(given.inputs):
            name = list(kinds)[number % len(kinds)]
            attack(kinds[name], top / "around" / str(number), np.random.default_rng([given.seed, number]), tried)
            each[name] += 1
            for wrong in tried.wrong[said:]:
                print(f"{name}, input {number}: {wrong}", flush=True)
            said = len(tried.wrong)
    seconds = time.perf_counter() - started
    print(f"{tried.inputs} hostile inputs, {tried.refused} refused; {len(tried.wrong)} wrong; {seconds:.0f} s")
    print(", ".join(f"{count} {name}" for name, count in each.items()))
    sys.exit(bool(tried.wrong))


if __name__ == "__main__":
    main()

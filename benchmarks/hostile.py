"""Try commands on hostile inputs, which seeded edits make of valid ones.

    python benchmarks/hostile.py [--inputs 300] [--seed 0]

None may write outside its folder, end a command in a traceback, hang it for 10 s, have it say over 100 KB, or be
accepted and change the content. A new kind of input is a function in `testkit/hostile.py`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.hostile import KINDS, Tried, attack, valid_cache


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--inputs", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    tried, kinds, started = Tried(), list(KINDS.values()), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        valid = valid_cache(Path(folder) / "valid")
        for number in range(given.inputs):
            place = Path(folder) / "around" / str(number)
            place.mkdir(parents=True)
            attack(kinds[number % len(kinds)], valid, place, np.random.default_rng([given.seed, number]), tried)
    for wrong in tried.wrong:
        print(wrong)
    seconds = time.perf_counter() - started
    print(f"{tried.inputs} hostile inputs, {tried.refused} refused; {len(tried.wrong)} wrong; {seconds:.0f} s")
    sys.exit(bool(tried.wrong))


if __name__ == "__main__":
    main()

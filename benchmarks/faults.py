"""Hide files that abort, hang or exhaust memory among good ones: only they may be missing from the cache.

    python benchmarks/faults.py [--files 2000]

One build without and one with an abort, a hang and a memory bomb, each by two local workers: the counts may differ by
three failed files, the rejects by three lines, and the digest not at all. The hang is cut short, after checking that
the engine has set its limit of 60 s.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.faulty import check_neighbours


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--files", type=int, default=2000)
    options.add_argument("--rows", type=int, default=256, help="rows per shard")
    given = options.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        killed = check_neighbours(Path(folder), given.files, given.rows, kinds=("abort", "hang", "bomb"))
    print(f"{given.files:,} files and {len(killed)} that kill their worker; {time.perf_counter() - started:.0f} s")
    for path, message in zip(killed["path"], killed["message"], strict=True):
        print(f"  {path}: {message}")
    print("otherwise, counts, rejects and digest equal those of a build without them")


if __name__ == "__main__":
    main()

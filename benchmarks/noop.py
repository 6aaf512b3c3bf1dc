"""Measure the cost of a build that has nothing, or almost nothing, to do.

    python benchmarks/noop.py [--files 100000] [--among 10000] [--entries 750000]

1. A no-op build of many files, against a bare os.scandir + stat walk of the same tree and `pipeline --help`.
2. One changed file among `--among`: the ratio to the no-op, and what is decoded and written.
3. A simulated ledger of `--entries` files, read, compared and planned: time and peak memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from frame import best, machine, timed

from testkit.small import Small, counted, slice_bytes, write

PIPELINE = [sys.executable, "-c", "from pipeline.cli.main import main; main()"]
REPEATS = 5


def shortest(function: Callable[[], object]) -> float:
    """Return the time of the shortest of several runs, in seconds: a busy machine only makes runs longer."""
    return best({"": lambda: timed(function)}, REPEATS)[""].wall


def walk(folder: str) -> int:
    """Stat every file below a folder and return their number."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                count += walk(entry.path)
            else:
                entry.stat()
                count += 1
    return count


def make_source(small: Small, files: int) -> None:
    """Write one slice and many tiny files that are not DICOM, 500 per folder, since conversion is not measured here."""
    write(small.src / "slice.dcm", slice_bytes(1))
    for number in range(files - 1):
        folder = small.src / f"{number // 500:04d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:06d}").write_bytes(b"%06d" % number)
    long_ago = 1_500_000_000
    for path in small.src.rglob("*"):
        os.utime(path, (long_ago + 0.25, long_ago + 0.25))


def call(*arguments: str) -> None:
    subprocess.run([*PIPELINE, *arguments], check=True, capture_output=True)


def measure_noop(files: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), rows=256)
        make_source(small, files)
        small.build()
        options = small.options()
        walked, helped = shortest(lambda: walk(str(small.src))), shortest(lambda: call("--help"))
        built = shortest(lambda: call("build", *options))
    print(f"no-op of {files:,} files: {built:.2f} s; walk {walked:.2f} s, --help {helped:.2f} s")
    print(f"  (no-op - help) / walk = {(built - helped) / walked:.2f}   (limit 3)")


def measure_one_changed(files: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), rows=256, sizes=(224, 380))
        for number in range(files):
            path = small.src / f"{number % 20:02d}" / f"{number:05d}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(slice_bytes(number))
        long_ago = 1_500_000_000.25
        for path in small.src.rglob("*.dcm"):
            os.utime(path, (long_ago, long_ago))
        small.build()
        noop = shortest(small.build)
        write(small.src / "00" / "00000.dcm", slice_bytes(0, content=1), 1_600_000_000_250_000_000)
        with counted() as work:
            changed = timed(small.build).wall
    shards = f"{len(work.shards)} shards written for 2 sizes"
    print(
        f"one changed among {files:,}: {work.rendered} slice decoded, {shards}, {changed / noop:.1f}x the no-op's time"
    )


def measure_record(entries: int) -> None:
    """Read a ledger of that many files, compare and plan, in a separate process."""
    code = f"""
import resource, time
import numpy as np
from pipeline.planning import changes
from pipeline.planning import plan
from pipeline.planning.known import Known
from pipeline.cache.ledger import Ledger, empty_ledger
from pipeline.source.listing import Listing
from pipeline.planning.stages import ArraySpec, Fingerprints
n = {entries}
paths = sorted(f"ID_{{number * 7919 % 2**36:09x}}/ID_{{number:012x}}.dcm" for number in range(n))
sizes, times, digests = np.full(n, 526_000), np.arange(n) + 10**18, np.ones((n, 2), np.uint64)
places = np.arange(n, dtype=np.int32)
stored = Ledger(paths, sizes, times, digests, places // 256, places % 256, np.ones(n, np.int32)).encode()
wanted = Fingerprints("r", (ArraySpec(224, "01234567"),), "t")
for what, there in (("unchanged", times), ("one changed", times + (places == 7)), ("first build", None)):
    listing = Listing(list(paths), sizes.copy(), (times if there is None else there).copy())
    started = time.perf_counter()
    ledger = empty_ledger() if there is None else Ledger.decode(stored)
    difference = changes.compare(listing, ledger)
    resolved = changes.resolve(listing, ledger, difference, {{}})
    known = Known(ledger, "r", "t", frozenset({{"224-01234567"}}), ledger, {{}}, {{}}, frozenset(), 3000)
    made = plan.make(listing, known, resolved, wanted, 256)
    print(f"  {{what}}: {{time.perf_counter() - started:.1f}} s, {{len(made.jobs):,}} tasks")
print(f"  peak memory {{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}} GB (limit 1)")
"""
    print(f"simulated ledger of {entries:,} files: read, compared, planned (limit 10 s)", flush=True)
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--files", type=int, default=100_000)
    options.add_argument("--among", type=int, default=10_000)
    options.add_argument("--entries", type=int, default=750_000)
    given = options.parse_args()
    print(machine())
    measure_record(given.entries)
    measure_one_changed(given.among)
    measure_noop(given.files)


if __name__ == "__main__":
    main()

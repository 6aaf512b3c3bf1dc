"""This file flips single bits in a cache: verify must find each, and --repair must bring the digest back.

    python benchmarks/bitrot.py [--flips 200] [--together 5]

First one flip at a time, in any file of the cache but the lock; then several shards, tables and zarr.json at once.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.pipeline.small import LONG_AGO_NS, Small, frames_bytes, slice_bytes, write, write_slices


def make_cache(folder: Path) -> Small:
    """Two sizes, several shards, a second commit, rejects, a duplicate and a file of many frames."""
    small = Small(folder, sizes=(8, 12), labels={f"1.2.3.0.{number}": number % 2 for number in range(40)})
    write_slices(small.src, range(30))
    write(small.src / "notes.txt", b"not DICOM")
    write(small.src / "twin.dcm", slice_bytes(5))
    write(small.src / "frames.dcm", frames_bytes(50, 11))
    small.build()
    write(small.src / "new.dcm", slice_bytes(35), LONG_AGO_NS)
    small.build()
    return small


def flip(path: Path, rng: np.random.Generator) -> None:
    content, bit = bytearray(path.read_bytes()), int(rng.integers(path.stat().st_size * 8))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def kind(small: Small, path: Path) -> str:
    parts = path.relative_to(small.out).parts
    return "zarr.json" if parts[-1] == "zarr.json" else "/".join(parts[: 1 + (parts[0] == ".pipeline")])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--flips", type=int, default=200)
    options.add_argument("--together", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    rng, kinds, missed, unmended = np.random.default_rng(given.seed), Counter[str](), 0, 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        small = make_cache(Path(folder))
        digest = small.digest()
        files = [path for path in sorted(small.out.rglob("*")) if path.is_file() and path.name != "lock"]
        open_to_all = [path for path in files if ".pipeline" not in path.parts and "commits" not in path.parts]
        for number in range(given.flips + given.flips // 10):
            alone = number < given.flips
            chosen = rng.choice(files, 1) if alone else rng.choice(open_to_all, given.together, replace=False)
            for path in chosen:
                flip(path, rng)
                kinds[kind(small, path)] += 1
            said = small.verify(code=None).stdout
            missed += sum(str(path.relative_to(small.out)) not in said for path in chosen)
            small.verify("--repair", "--src", small.src, code=None)
            unmended += small.digest() != digest or "damaged:" in small.verify(code=None).stdout
    print(
        f"{sum(kinds.values())} flips, {given.flips} alone and the others {given.together} at a time, in {dict(kinds)}"
    )
    print(f"{missed} not found, {unmended} not mended; {time.perf_counter() - started:.0f} s")
    sys.exit(bool(missed or unmended))


if __name__ == "__main__":
    main()

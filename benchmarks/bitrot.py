"""Flip single bits in a cache: verify must find each, and --repair must bring the digest back.

    python benchmarks/bitrot.py [--flips 200] [--together 5] [--src FOLDER]

First one flip at a time, in any file of the cache but the lock; then several shards, tables and zarr.json at once.
The slices are made up, or those of FOLDER.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.small import LONG_AGO_NS, MADE_UP, Deck, Small, frames_bytes, write


def make_cache(folder: Path, deck: Deck) -> Small:
    """Two sizes, several shards, a second commit, rejects, a duplicate and a file of many frames."""
    slices = min(len(deck.files) or 31, 31) - 1
    small = Small(folder, sizes=(8, 12), labels={deck.uid(number): number % 2 for number in range(slices)})
    deck.write(small.src, range(slices))
    write(small.src / "notes.txt", b"not DICOM")
    write(small.src / "twin.dcm", deck.slice(5))
    write(small.src / "frames.dcm", frames_bytes(50, 11))
    small.build()
    write(small.src / "new.dcm", deck.slice(slices), LONG_AGO_NS)
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
    options.add_argument("--src", type=Path, help="Uncompressed slices, 7 at least.")
    given = options.parse_args()
    rng, kinds, missed, unmended = np.random.default_rng(given.seed), Counter[str](), 0, 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        small = make_cache(Path(folder), Deck.of(given.src) if given.src else MADE_UP)
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

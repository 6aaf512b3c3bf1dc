"""Flip single bits in a cache: verify must report each that matters, and --repair must restore the digest.

    python benchmarks/bitrot.py [--flips 200] [--together 5] [--src FOLDER]

First one flip at a time, in any file of the cache except the lock; then several at once, in shards, tables and
zarr.json. A flip that verify does not report must change nothing that zarr-python reads: it is in bytes of a shard
that its index no longer refers to after a repair, or in the name of a codec setting that has its default value.
The slices are synthetic, or those of FOLDER.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.small import LONG_AGO_NS, MADE_UP, Deck, Small, frames_bytes, write


def make_cache(folder: Path, deck: Deck) -> Small:
    """Build a cache with two sizes, several shards, two commits, rejects, a duplicate and a multi-frame file."""
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


def flip(path: Path, rng: np.random.Generator) -> bytes:
    """Flip a random bit of a file and return the previous content."""
    before = path.read_bytes()
    content, bit = bytearray(before), int(rng.integers(len(before) * 8))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))
    return before


def kind(small: Small, path: Path) -> str:
    parts = path.relative_to(small.out).parts
    return "zarr.json" if parts[-1] == "zarr.json" else "/".join(parts[: 1 + (parts[0] == ".pipeline")])


def contents(small: Small) -> dict[str, bytes]:
    """Return what zarr-python reads: the attributes of the root and every value of every array, by path."""
    root = zarr.open_group(small.out, mode="r", use_consolidated=False)
    arrays = {f"{name}/{path}": root[name][path] for name in ("images", "sums") for path in root[name]}
    return {"": repr(dict(root.attrs)).encode()} | {path: array[:].tobytes() for path, array in arrays.items()}


def changes_content(small: Small, path: Path, others: dict[Path, bytes], before: dict[str, bytes]) -> bool:
    """Return whether a flip changes what zarr-python reads, with the other files of this round restored."""
    flipped = {other: other.read_bytes() for other in others if other != path}
    for other in flipped:
        other.write_bytes(others[other])
    try:
        return contents(small) != before
    except Exception:  # whatever a reader raises: reading notices the flip, although verify did not
        return True
    finally:
        for other, content in flipped.items():
            other.write_bytes(content)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--flips", type=int, default=200)
    options.add_argument("--together", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--src", type=Path, help="at least 7 uncompressed slices")
    given = options.parse_args()
    rng, kinds, idle, missed, unrepaired = np.random.default_rng(given.seed), Counter[str](), 0, 0, 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        small = make_cache(Path(folder), Deck.of(given.src) if given.src else MADE_UP)
        digest, before = small.digest(), contents(small)
        files = [path for path in sorted(small.out.rglob("*")) if path.is_file() and path.name != "lock"]
        open_to_all = [path for path in files if ".pipeline" not in path.parts and "commits" not in path.parts]
        for number in range(given.flips + given.flips // 10):
            alone = number < given.flips
            chosen = rng.choice(files, 1) if alone else rng.choice(open_to_all, given.together, replace=False)
            originals = {path: flip(path, rng) for path in chosen}
            kinds.update(kind(small, path) for path in originals)
            report = small.verify(code=None).stdout
            unreported = [path for path in originals if str(path.relative_to(small.out)) not in report]
            not_found = [path for path in unreported if changes_content(small, path, originals, before)]
            missed, idle = missed + len(not_found), idle + len(unreported) - len(not_found)
            small.verify("--repair", "--src", small.src, code=None)
            unrepaired += small.digest() != digest or "damaged:" in small.verify(code=None).stdout
    print(
        f"{sum(kinds.values())} flips, {given.flips} single, the others in groups of {given.together}, in {dict(kinds)}"
    )
    print(
        f"{idle} change nothing, {missed} not found, {unrepaired} not repaired; {time.perf_counter() - started:.0f} s"
    )
    sys.exit(bool(missed or unrepaired))


if __name__ == "__main__":
    main()

"""Measure the rate of shuffled batches from the cache, compared with the loaders in common use.

    python benchmarks/stream.py [--patients 40] [--batch-size 256] [--repeats 5] [--folder DIR]
    python benchmarks/stream.py --cache cache.zarr [--dicoms DIR]

One core, one run, page cache warm; every loader delivers the same slices as (B, 3, S, S) uint8 batches, shuffled anew
for each epoch. The loaders take turns and the best of the repeats counts, by wall time and by CPU time including that
of workers; on a busy machine the latter is more reliable. Loaders whose package is not installed are left out, with the
reason; to install all, use `pip install '.[peers]'` in a separate environment without constraints.txt, because MosaicML
Streaming needs an older xxhash. annbatch, and zarr-python's joined reads of a shard (3.3), need Python 3.12.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1"))

import numpy as np
import torch
from frame import Duration, best, machine, table, timed
from loaders import FLOOR, FORKS, WAYS, Epoch, Slices

from training.data.cache import open_cache
from training.data.stream import Stream


def build_cache(folder: Path, patients: int, *options: str) -> tuple[Path, Path]:
    """Write a phantom, build a cache from it with the installed commands, and return the cache and the DICOM folder."""
    program = str(Path(sys.executable).with_name("pipeline"))
    phantom, cache = folder / "phantom", folder / "cache.zarr"
    labels = phantom / "labels.csv"
    subprocess.run([program, "phantom", "--out", phantom, "--patients", str(patients)], check=True)
    entry: list[str | Path] = ["--dataset", "phantom", "--src", phantom / "dicoms", "--labels", labels, "--out", cache]
    subprocess.run([program, "build", *entry, *options], check=True)
    return cache, phantom / "dicoms"


def make_slices(cache_path: Path, size: int, batch_size: int, dicoms: Path | None, folder: Path) -> Slices:
    """Decode all slices of a cache into a file of raw pixels."""
    cache = open_cache(cache_path)
    shape = (cache.num_slices, *cache.array(size).shape[1:])
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
    for batch in Stream(cache, size, np.arange(cache.num_slices), batch_size).epoch(0, 0, shuffle=False):
        pixels[batch.lines.numpy()] = batch.images.numpy()
    pixels.flush()
    return Slices(cache, size, batch_size, np.load(folder / "pixels.npy", mmap_mode="r"), dicoms, folder)


def prepare(slices: Slices, only: Sequence[str]) -> dict[Callable, tuple[int, Epoch]]:
    """Let each loader store the slices; print why one cannot."""
    ready = {}
    for way in (way for way in WAYS if way is FLOOR or not only or way.__name__ in only):
        try:
            ready[way] = way(slices)
        except Exception as error:  # whatever a loader or its installation raises, measure the others
            print(f"left out: {way.__doc__} ({type(error).__name__}: {error})", file=sys.stderr)
    return ready


def read(epoch: Epoch, order: np.ndarray) -> Duration:
    """Return the time per image in one epoch."""
    images: list[int] = []
    took = timed(lambda: images.extend(len(batch) for batch in epoch(order)))
    return Duration(*(seconds / sum(images) for seconds in took))


def report(slices: Slices, repeats: int, only: Sequence[str]) -> None:
    """Measure the loaders in turns, those that fork last, and print the table."""
    ready = prepare(slices, only)
    rngs = {way: np.random.default_rng(0) for way in ready}  # the same orders for each

    def turn(way: Callable) -> Duration:
        return read(ready[way][1], rngs[way].permutation(len(slices.pixels)))

    took: dict[str, Duration] = {}  # with one more repeat, to warm the page cache
    for ways in ([way for way in ready if way not in FORKS], [way for way in ready if way in FORKS]):
        took |= best({way.__name__: functools.partial(turn, way) for way in ways}, repeats + 1)
    print(f"{len(slices.pixels)} slices at {slices.size} px, batches of {slices.batch_size}; {machine()}")
    floor, rows = took[FLOOR.__name__], []
    for way in sorted(ready, key=lambda way: took[way.__name__].cpu):
        wall, cpu = took[way.__name__]
        stored = ready[way][0]
        speeds = f"{1 / wall:.0f}", f"{floor.wall / wall:.3f}", f"{1 / cpu:.0f}", f"{floor.cpu / cpu:.3f}"
        sizes = f"{stored / len(slices.pixels) / 1000:.1f}", f"{stored / slices.pixels.nbytes:.3f}"
        rows.append(((way.__doc__ or way.__name__), *speeds, *sizes))
    print(table(("loader", "images/s", "of map", "by CPU", "of map", "KB", "of raw"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="measure this cache instead of a phantom")
    parser.add_argument("--dicoms", type=Path, help="the DICOM files that --cache was built from")
    parser.add_argument("--patients", type=int, default=40, help="of the phantom")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder to write to; default: a temporary folder")
    parser.add_argument("--only", nargs="*", default=[], metavar="WAY", help="functions in loaders.py; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cache, dicoms = options.cache, options.dicoms
        if cache is None:
            cache, dicoms = build_cache(Path(folder), options.patients)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        slices = make_slices(cache, options.size, options.batch_size, dicoms, Path(folder))
        report(slices, options.repeats, options.only)


if __name__ == "__main__":
    main()

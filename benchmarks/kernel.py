"""Measure the kernel against the usual way, NumPy float windows and Pillow, on one core.

    python benchmarks/kernel.py [--slices 12] [--repeats 30] [--data DIR]

One process, one run, one thread. The functions take turns, each twice in a row, and the best repeat of each slice
counts, so stored values are in the CPU's cache, as after reading a file, and a busy machine hardly affects the ratios.
Kinds of slices: synthetic heads; noise without black, the worst case; a real series in --data.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numba
import numpy as np
from frame import Duration, best, machine, timed
from PIL import Image

from pipeline import kernel
from pipeline.kernel import passes
from pipeline.kernel.grey import grey_of
from pipeline.kernel.render import _scratch
from pipeline.kernel.taps import columns, rows
from pipeline.planning.catalog import Window

WINDOWS = (Window("brain", 40.0, 80.0), Window("subdural", 50.0, 130.0), Window("bone", 600.0, 2800.0))
SIZES = ((224,), (380,), (224, 380))
INTERCEPT = -1024.0  # of the synthetic slices, and close enough for real ones, since only the time is measured


def usual_way(stored: np.ndarray, images: Sequence[np.ndarray]) -> None:
    """Compute HU and one window per channel in floats, and resize each channel and size with Pillow."""
    hu = stored.astype(np.float32) + np.float32(INTERCEPT)
    for c, window in enumerate(WINDOWS):
        low = window.level_hu - window.width_hu / 2
        grey = np.floor(255 * np.clip((hu - low) / window.width_hu, 0, 1) + 0.5).astype(np.uint8)
        for image in images:
            side = (image.shape[-1], image.shape[-1])
            image[c] = np.asarray(Image.fromarray(grey).resize(side, Image.Resampling.BILINEAR))


@numba.njit(nogil=True)
def fill_bands(stored, grey, band):  # type: ignore[no-untyped-def]
    """Run the part of the kernel's horizontal pass that is shared by all sizes."""
    for top in range(0, stored.shape[0], band.shape[0]):
        rows = stored[top : top + band.shape[0]]
        begin, end = passes._lit_span(rows, grey[3], grey[4])
        passes.fill_band(rows, grey, begin, end, band)


def synthetic_head(seed: int) -> np.ndarray:
    """Return a skull of 16 x 20 cm with noisy brain in a field of 25 cm, (512, 512) int16."""
    random = np.random.default_rng(seed)
    y, x = (np.mgrid[:512, :512] - 255.5) / 256
    radius = np.hypot(x / 0.64, y / 0.8)
    hu = np.where(radius < 0.93, 33, np.where(radius < 1, 1200, -1000)) + random.normal(0, 8, radius.shape)
    return np.round(hu - INTERCEPT).clip(0).astype(np.int16)


def make_slices(count: int, data: Path) -> dict[str, list[np.ndarray]]:
    """Return stored values by kind of slice."""
    random = np.random.default_rng(0)
    slices = {
        "synthetic heads": [synthetic_head(seed) for seed in range(count)],
        "noise, no black": [random.integers(1000, 2000, (512, 512), np.int16) for _ in range(count)],
    }
    files = sorted((data / "head_ct_tilted").glob("*.dcm"))[:: max(1, 28 // count)]
    if files:
        import pydicom

        to_stored = int(-INTERCEPT)  # that series has intercept 0
        slices["head_ct_tilted"] = [(pydicom.dcmread(file).pixel_array + to_stored).astype(np.int16) for file in files]
    return slices


def best_ms(
    ways: dict[str, Callable[[np.ndarray], object]], slices: Sequence[np.ndarray], repeats: int
) -> dict[str, float]:
    """Return the milliseconds per slice of each function: the mean over slices of the best repeat."""
    took = [
        best({name: partial(timed_again, partial(way, stored)) for name, way in ways.items()}, repeats)
        for stored in slices
    ]
    return {name: 1000 * float(np.mean([of[name].wall for of in took])) for name in ways}


def timed_again(function: Callable[[], object]) -> Duration:
    """Return what a second call takes: the first brings memory into the core's caches."""
    function()
    return timed(function)


def make_ways(sizes_px: tuple[int, ...], shape: tuple[int, int]) -> dict[str, Callable[[np.ndarray], object]]:
    """Return the usual way, the kernel, and the kernel's parts, as functions of the stored values."""
    images = [np.zeros((len(WINDOWS), side, side), np.uint8) for side in sizes_px]
    sums = [np.zeros((len(WINDOWS), 2), np.uint64) for _ in sizes_px]
    grey = grey_of(1.0, INTERCEPT, None, True, WINDOWS)
    groups, sizes, margin = columns(shape[1], sizes_px)
    scratch = _scratch(shape[0], shape[1] + 2 * margin, len(WINDOWS), sizes_px)

    def vertical(_: np.ndarray) -> None:
        for i, side in enumerate(sizes_px):
            passes.vertical(scratch, i, sizes[0][i], rows(shape[0], side), images[i], sums[i])

    return {
        "usual way": lambda stored: usual_way(stored, images),
        "kernel": lambda stored: kernel.render(stored, 1.0, INTERCEPT, None, WINDOWS, images, sums),
        "grey levels": lambda stored: fill_bands(stored.view(np.uint16), grey, scratch[0]),
        "grey levels and horizontal": lambda stored: passes.horizontal(
            stored.view(np.uint16), grey, groups, sizes, scratch
        ),
        "vertical and sums": vertical,
    }


def import_seconds(code: str, cache_dir: str) -> float:
    """Return the CPU time of a new process that runs `code` with numba's cache in `cache_dir`."""
    environment = os.environ | {"NUMBA_CACHE_DIR": cache_dir}
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment)).cpu


def print_import_costs() -> None:
    with tempfile.TemporaryDirectory() as cache_dir:
        compiled = import_seconds("import pipeline.kernel", cache_dir)
        loaded = min(import_seconds("import pipeline.kernel", cache_dir) for _ in range(3))
        bare = min(import_seconds("import numba", cache_dir) for _ in range(3))
    print(f"import, CPU time: first {compiled:.2f} s, then {loaded:.2f} s, of which numba itself {bare:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ICH_TEST_DATA", "../shared/data")))
    options = parser.parse_args()

    print(machine())
    print_import_costs()
    for kind, slices in make_slices(options.slices, options.data).items():
        for sizes_px in SIZES:
            took = best_ms(make_ways(sizes_px, slices[0].shape), slices, options.repeats)
            usual, own = took.pop("usual way"), took.pop("kernel")
            parts = ", ".join(f"{name} {ms:.3f}" for name, ms in took.items())
            sizes = "+".join(map(str, sizes_px))
            print(f"{kind:16} {sizes:>7}: usual {usual:5.2f} ms, kernel {own:.3f} ms, {usual / own:4.1f}x ({parts})")


if __name__ == "__main__":
    main()

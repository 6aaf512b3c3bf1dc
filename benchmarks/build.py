"""Measure the time per slice of the usual way, of our shard task, and of reading alone, the lower bound.

    python benchmarks/build.py [--slices 512] [--repeats 5] [--folder DIR] [--data DIR]

One process, one core, one run; page cache warm except for the last line. All ways read the same phantom files, in
turns, and the best of the repeats counts, so a busy machine hardly affects the ratios. Compressed files need the extra
`codecs`.
"""

import argparse
import contextlib
import functools
import math
import os
import shutil
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS")
os.environ.update(dict.fromkeys(ONE_THREAD, "1"))

import imagecodecs  # noqa: E402
import numpy as np  # noqa: E402
import pydicom  # noqa: E402
import zarr  # noqa: E402
from frame import Duration, best, machine, table, timed  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import JPEGLSLossless  # noqa: E402

from phantom import dataset as phantom  # noqa: E402
from pipeline import kernel  # noqa: E402
from pipeline.cache import drafts, shards  # noqa: E402
from pipeline.cache.lock import lock  # noqa: E402
from pipeline.cache.paths import Cache  # noqa: E402
from pipeline.dicom import (  # noqa: E402
    codecs,
    frames,
    pixels,
)
from pipeline.dicom import read as dicom  # noqa: E402
from pipeline.engine import build, fill, shard  # noqa: E402
from pipeline.engine.context import ShardResult  # noqa: E402
from pipeline.engine.run import run_jobs  # noqa: E402
from pipeline.engine.work import Work  # noqa: E402
from pipeline.planning import catalog  # noqa: E402
from pipeline.planning.settings import BuildOptions, Request, Settings, Workers, make_settings  # noqa: E402
from pipeline.planning.survey import survey  # noqa: E402
from pipeline.source import folder as source_folder  # noqa: E402

SIZES = ((224,), (380,), (224, 380))
USUAL = "the usual way"
SLICES_PER_PATIENT = 20  # at least, in the phantom
CODED = 256  # slices that are rewritten as compressed files


# --- the ways ------------------------------------------------------------------------------------------------------


def usual_way(files: Sequence[Path], sizes_px: Sequence[int], windows: Sequence[catalog.Window], folder: Path) -> None:
    """Convert files as a typical script does: dcmread, float windows, Pillow, one zarr-python assignment per slice."""
    group = zarr.open_group(folder, mode="w")
    arrays = [
        group.create_array(str(side), shape=(len(files), 3, side, side), chunks=(1, 3, side, side), dtype="uint8")
        for side in sizes_px
    ]
    for row, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        hu = dataset.pixel_array.astype(np.float32) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        channels = []
        for window in windows:
            low = window.level_hu - window.width_hu / 2
            channels.append((np.clip((hu - low) / window.width_hu, 0, 1) * 255).astype(np.uint8))
        picture = Image.fromarray(np.stack(channels, -1))
        for side, array in zip(sizes_px, arrays, strict=True):
            resized = picture.resize((side, side), Image.Resampling.BILINEAR)
            array[row] = np.moveaxis(np.asarray(resized), -1, 0)


def floor(files: Sequence[Path]) -> None:
    """Open, read and close every file, the lower bound."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.read(descriptor, os.fstat(descriptor).st_size)
        os.close(descriptor)


@contextlib.contextmanager
def shard_tasks(settings: Settings, root: Path) -> Iterator[Callable[[], list[ShardResult]]]:
    """Yield a function that runs the tasks of `pipeline build --workers 0` for a new cache."""
    cache = Cache(root)
    with lock(cache) as token:
        found = survey(cache, settings)
        context = build.make_context(Work(cache, settings, found, token, BuildOptions()))
        yield lambda: list(run_jobs(context, found.plan.jobs, Workers(0), print))


def own_way(settings: Settings, root: Path) -> Duration:
    """Build the shards of a new cache with our task, and time it."""
    results: list[ShardResult] = []
    with shard_tasks(settings, root) as run:
        took = timed(lambda: results.extend(run()))
    rejects = sum(result.failed + result.other_files for result in results)
    if rejects:
        raise SystemExit(f"{rejects} phantom files were rejected, so the figures would be meaningless")
    return took


# --- by step -------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Time per step; time in a nested step counts only for the nested one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def watch(self, owner: Any, attribute: str, name: str) -> Iterator[None]:
        """Count the time of a function, wherever it is called, for a step."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.step(name):
                return function(*arguments, **options)

        setattr(owner, attribute, timed)
        try:
            yield
        finally:
            setattr(owner, attribute, function)


STEPS: tuple[tuple[str, Any, str], ...] = (
    ("read", source_folder, "read_file"),
    ("digests of file and image", fill.xxhash, "xxh3_128_hexdigest"),
    ("header", dicom, "read_header"),
    ("rules", shard, "read_slices"),
    ("record of the slice", frames, "_read_frame"),
    ("digest of the pixels", frames, "digest_pixels"),
    ("decoder of a compressed file", codecs, "_run"),
    ("stored values", pixels, "_stored_values"),
    ("render", kernel, "render"),
    ("compress, crc32c", shards.Codec, "encode_into"),
    ("write, start of the flush", shards.ShardWriter, "_write"),
    ("done-record", shard, "encode_record"),
    ("fsync and rename", drafts.Drafts, "publish"),
)


def time_by_step(settings: Settings, root: Path) -> dict[str, float]:
    """Run the shard tasks once and return the seconds of each step and of the rest."""
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        for name, owner, attribute in STEPS:
            stack.enter_context(watch.watch(owner, attribute, name))
        run = stack.enter_context(shard_tasks(settings, root))
        watch.seconds.clear()
        with watch.step("the rest of the task"):
            run()
    return dict(watch.seconds)


# --- the run -------------------------------------------------------------------------------------------------------


def make_slices(folder: Path, count: int) -> list[Path]:
    """Return exactly `count` phantom files in `folder`, reusing existing ones."""
    dicoms = folder / "dicoms"
    if not dicoms.exists():
        print(f"making {count} phantom slices", flush=True)
        phantom.write(folder, math.ceil(count / SLICES_PER_PATIENT), seed=0)
    found = sorted(dicoms.glob("*.dcm"))
    for surplus in found[count:]:
        surplus.unlink()
    return found[:count]


def fresh(folder: Path) -> Path:
    """Empty a folder, or create it, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def make_build_settings(data: Path, sizes_px: tuple[int, ...]) -> Settings:
    """Return the settings of `pipeline build --dataset phantom --src data/dicoms --size ... --no-labels`."""
    found = catalog.load(None)
    request = Request(src=str(data / "dicoms"), dataset="phantom", sizes=sizes_px, no_labels=True)
    return make_settings(found, request, built=None, key_digest="")


def measure(data: Path, files: Sequence[Path], sizes_px: tuple[int, ...], repeats: int, folder: Path) -> None:
    settings = make_build_settings(data, sizes_px)
    own_way(settings, fresh(folder / "warm-up"))  # compiles, or loads compiled code
    usual = functools.partial(usual_way, files, sizes_px, settings.windows)
    ways: dict[str, Callable[[], Duration]] = {
        USUAL: lambda: timed(lambda: usual(fresh(folder / "usual"))),
        "shard task of pipeline build": lambda: warm(files, lambda: own_way(settings, fresh(folder / "own"))),
        "open, read, close": lambda: timed(lambda: floor(files)),
    }
    took = best(ways, repeats)
    print(f"\n{' and '.join(map(str, sizes_px))} px")
    each = 1000 / len(files)
    rows = [
        (
            name,
            f"{len(files) / wall:,.0f}",
            f"{each * wall:.3f}",
            f"{took[USUAL].wall / wall:.1f}",
            f"{each * cpu:.3f}",
            f"{took[USUAL].cpu / cpu:.1f}",
        )
        for name, (wall, cpu) in took.items()
    ]
    print(table(("way", "slices/s", "ms per slice", "ratio", "CPU ms", "ratio"), rows))
    fastest = fastest_by_step(settings, files, repeats, folder)
    whole, names = sum(fastest.values()), (*(name for name, _, _ in STEPS), "the rest of the task")
    steps = [(name, f"{each * fastest.get(name, 0.0):.4f}", f"{fastest.get(name, 0.0) / whole:.1%}") for name in names]
    print("\n" + table(("step of the fastest run", "ms per slice", "share"), steps))


def fastest_by_step(settings: Settings, files: Sequence[Path], repeats: int, folder: Path) -> dict[str, float]:
    runs = [warm(files, lambda: time_by_step(settings, fresh(folder / "steps"))) for _ in range(repeats)]
    return min(runs, key=lambda run: sum(run.values()))


def code(file: Path, target: Path) -> None:
    """Write a copy of a slice with its pixels in JPEG-LS."""
    warnings.filterwarnings("ignore", module="pydicom")  # about UIDs such as ID_12ab
    dataset = pydicom.dcmread(file)
    dataset.PixelData = encapsulate([imagecodecs.jpegls_encode(dataset.pixel_array.view(np.uint16))])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(target)


def measure_coded(files: Sequence[Path], repeats: int, folder: Path) -> None:
    """Compare the shard task at 224 px on compressed files, without their decoder, with that on uncompressed files."""
    took = {}
    for coding, write in {"plain": shutil.copyfile, "JPEG-LS": code}.items():
        target = fresh(folder / coding / "dicoms")
        for file in files:
            write(file, target / file.name)
        written = sorted(target.glob("*.dcm"))
        took[coding] = fastest_by_step(make_build_settings(folder / coding, (224,)), written, repeats, folder)
    decoder = took["JPEG-LS"].pop("decoder of a compressed file")
    rest, plain = (1000 * sum(took[coding].values()) / len(files) for coding in ("JPEG-LS", "plain"))
    print(f"\n224 px, JPEG-LS: {1000 * decoder / len(files):.2f} ms per slice in the decoder,", end=" ")
    print(f"{rest:.3f} in the rest, {rest / plain:.2f} times an uncompressed file's")


def warm(files: Sequence[Path], way: Callable[[], Any]) -> Any:
    """Run a function with all files in the page cache, from which some systems evict files within seconds."""
    floor(files)
    return way()


def forget(files: Sequence[Path]) -> None:
    """Evict files from the page cache."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_sequentially(file: Path) -> None:
    with file.open("rb", buffering=0) as source:
        memory = bytearray(1 << 20)
        while source.readinto(memory):
            pass


def measure_cold(data: Path, files: Sequence[Path], repeats: int, folder: Path) -> None:
    """Compare the shard task at 224 px with a cold page cache to reading one long file sequentially."""
    settings, long = make_build_settings(data, (224,)), folder / "long"
    with long.open("wb") as target:
        for file in files:
            target.write(file.read_bytes())

    def after_forgetting(paths: Sequence[Path], way: Callable[[], Duration]) -> Duration:
        forget(paths)
        return way()

    ways: dict[str, Callable[[], Duration]] = {
        "cold": lambda: after_forgetting(files, lambda: own_way(settings, fresh(folder / "own"))),
        "warm": lambda: warm(files, lambda: own_way(settings, fresh(folder / "own"))),
        "disk": lambda: after_forgetting([long], lambda: timed(lambda: read_sequentially(long))),
    }
    took = best(ways, repeats)
    cold, cached, disk = (len(files) / took[name].wall for name in ("cold", "warm", "disk"))
    print(f"\n224 px, page cache cold: {cold:,.0f} slices/s, {cold / min(disk, cached):.2f} of the lower of", end=" ")
    print(f"the disk's sequential rate ({disk:,.0f}) and the warm rate ({cached:,.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder for temporary files")
    parser.add_argument("--data", type=Path, help="folder in which to keep the phantom files for the next run")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as scratch:
        data = (options.data or Path(scratch)) / f"{options.slices}-slices"
        files = make_slices(data, options.slices)
        size_kb = files[0].stat().st_size / 1000
        print(f"{len(files)} slices of {size_kb:.0f} KB, best of {options.repeats}; {machine()}")
        for sizes_px in SIZES:
            measure(data, files, sizes_px, options.repeats, Path(scratch))
        measure_coded(files[:CODED], options.repeats, Path(scratch))
        measure_cold(data, files, options.repeats, Path(scratch))


if __name__ == "__main__":
    main()

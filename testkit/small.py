"""Make tiny data sets, build caches from them, and count the work of builds; for tests and benchmarks."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pydicom
from click.testing import CliRunner, Result

from phantom import write as dicom_write
from pipeline import kernel
from pipeline.cache import drafts
from pipeline.cache.paths import Cache
from pipeline.cli.main import main
from pipeline.dicom.header import read_header
from pipeline.dicom.tags import SOP_INSTANCE
from pipeline.dicom.values import text
from pipeline.source.folder import Folder

CATALOG = """
windows:
  - {{name: brain, level_hu: {level}, width_hu: 80}}
  - {{name: subdural, level_hu: 50, width_hu: 130}}
  - {{name: bone, level_hu: 600, width_hu: 2800}}
sizes: [{sizes}]
layout: {{rows_per_shard: {rows}}}
datasets:
  generic:
    description: tiny slices
    image_id: sop_instance_uid
    patient_ids: keep
    missing_rescale: {rescale}
    classes: [{{name: bleed, weight: {weight}}}, {{name: any, weight: 2}}]
"""
LONG_AGO_NS = 1_500_000_000_123_456_789
SIDE_PX = 16


def slice_bytes(number: int, content: int = 0, series: int = 0) -> bytes:
    """Return a DICOM file of 16 x 16 pixels; `number` determines UID and position, `content` the pixels."""
    return dicom_write.encode_slice(_noise(number, content, SIDE_PX), _attributes(number, series))


@dataclass(frozen=True)
class Deck:
    """The source of a test's slices: synthetic, or real files.

    Attributes:
        files: paths of uncompressed slices; empty for synthetic slices.
    """

    files: tuple[Path, ...] = ()

    @staticmethod
    def of(folder: Path) -> "Deck":
        """Return a deck of the slices below a folder, ordered by path."""
        return Deck(tuple(sorted(folder.rglob("*.dcm"))))

    def slice(self, number: int, content: int = 0, series: int = 0) -> bytes:
        """Return a slice by its number; another `content` changes only pixels."""
        if not self.files:
            return slice_bytes(number, content, series)
        data = self.files[number].read_bytes()
        changed = len(data) // 10 * 2 * bool(content)  # the lowest rows, which every window then shows
        return data[: len(data) - changed] + (1000 + 64 * content).to_bytes(2, "little") * (changed // 2)

    def uid(self, number: int, series: int = 0) -> str:
        """Return the SOP Instance UID of a slice."""
        if not self.files:
            return f"1.2.3.{series}.{number}"
        return text(read_header(memoryview(self.files[number].read_bytes())).values[SOP_INSTANCE])

    def write(self, src: Path, numbers: range) -> None:
        for number in numbers:
            write(src / f"{number:03d}.dcm", self.slice(number))


MADE_UP = Deck()


def frames_bytes(number: int, frames: int) -> bytes:
    """Return a DICOM file with frames of 16 x 16 pixels, in the old style with one position for all frames."""
    tall = dicom_write.encode_slice(_noise(number, frames, SIDE_PX * frames), _attributes(number, 0))
    dataset = pydicom.dcmread(io.BytesIO(tall))
    dataset.Rows, dataset.NumberOfFrames = SIDE_PX, frames
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def _noise(number: int, content: int, height: int) -> np.ndarray:
    return np.random.default_rng([number, content]).integers(0, 2000, (height, SIDE_PX), dtype=np.uint16)


def _attributes(number: int, series: int) -> dicom_write.SliceAttributes:
    return dicom_write.SliceAttributes(
        sop_instance_uid=f"1.2.3.{series}.{number}",
        patient_id=f"patient{series}",
        study_instance_uid=f"1.2.4.{series}",
        series_instance_uid=f"1.2.5.{series}",
        position=(0.0, 0.0, 5.0 * number),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing_mm=(0.5, 0.5),
        bits_stored=12,
        intercept=-1024,
        windows=(("40", "80"),),
        implicit_vr=False,
    )


def write(path: Path, content: bytes, mtime_ns: int = LONG_AGO_NS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def write_slices(src: Path, numbers: range) -> None:
    MADE_UP.write(src, numbers)


@dataclass
class Work:
    """The work of a build: files read, slices rendered, and shard files written."""

    read: list[str] = field(default_factory=list)
    rendered: int = 0
    shards: list[str] = field(default_factory=list)


@contextlib.contextmanager
def counted() -> Iterator[Work]:
    """Count the work of builds with `--workers 0`."""
    work = Work()
    read, render, publish = Folder.read, kernel.render, drafts.Drafts.publish

    def counting_read(self, path, buffer, *how, **past):
        work.read.append(path)
        return read(self, path, buffer, *how, **past)

    def counting_render(*arguments):
        work.rendered += 1
        return render(*arguments)

    def counting_publish(self, paths, last):
        work.shards += [str(path) for path in paths if "/images/" in str(path)]
        return publish(self, paths, last)

    with (
        patch.object(Folder, "read", counting_read),
        patch.object(kernel, "render", counting_render),
        patch.object(drafts.Drafts, "publish", counting_publish),
    ):
        yield work


@dataclass
class Small:
    """A source, a catalog and a cache in one folder."""

    folder: Path
    level: int = 40
    sizes: tuple[int, ...] = (8,)
    rows: int = 8
    rescale: str = "reject"
    labels: dict[str, int] | None = None
    weight: int = 1

    @property
    def src(self) -> Path:
        return self.folder / "dicoms"

    @property
    def out(self) -> Path:
        return self.folder / "cache.zarr"

    @property
    def cache(self) -> Cache:
        return Cache(self.out)

    def copy(self, folder: Path) -> "Small":
        """Copy everything including the files' times, so that a test can start with a built cache."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return replace(self, folder=folder, labels=None if self.labels is None else dict(self.labels))

    def options(self) -> list[str]:
        """Return the options of build and plan, and write the files that they name."""
        catalog, labels = self.folder / "catalog.yaml", self.folder / "labels.csv"
        sizes = ", ".join(str(size) for size in self.sizes)
        settings = {"level": self.level, "rows": self.rows, "rescale": self.rescale, "weight": self.weight}
        catalog.write_text(CATALOG.format(sizes=sizes, **settings))
        if self.labels is None:
            return ["--src", str(self.src), "--out", str(self.out), "--catalog", str(catalog)]
        lines = [f"{uid},{bleed},{bleed}" for uid, bleed in self.labels.items()]
        labels.write_text("\n".join(["image_id,bleed,any", *lines]) + "\n")
        return ["--src", str(self.src), "--out", str(self.out), "--catalog", str(catalog), "--labels", str(labels)]

    def only(self) -> list[object]:
        """Return the options that remove sizes and labels that the cache has but these settings lack."""
        root = self.out / "zarr.json"
        built = [int(size) for size in json.loads(root.read_bytes())["attributes"]["sizes"]] if root.exists() else []
        drops = [option for size in built if size not in self.sizes for option in ("--drop-size", size)]
        return [*drops, *(["--no-labels"] if self.labels is None else [])]

    def build(self, *more: object, code: int = 0) -> Result:
        return run("build", *self.options(), "--workers", 0, *more, code=code)

    def plan(self, *more: object, code: int | None = 2) -> Result:
        return run("plan", *self.options(), *more, code=code)

    def verify(self, *more: object, code: int = 0) -> Result:
        return run("verify", self.out, *more, code=code)

    def repair(self, code: int = 0) -> Result:
        return self.verify("--repair", "--src", self.src, code=code)

    def digest(self) -> str:
        return run("info", self.out, "--digest").stdout.strip()

    def clean_digest(self, folder: Path) -> str:
        """Return the digest of a new cache built from the same source and settings."""
        clean = Small(folder, self.level, self.sizes, self.rows, self.rescale, self.labels, self.weight)
        folder.mkdir(parents=True)
        (folder / "dicoms").symlink_to(self.src.resolve())
        clean.build("--max-rejects", "100%")
        return clean.digest()


def run(*arguments: object, code: int | None = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert code in (None, result.exit_code), result.output
    return result


def flip(path: Path, bit: int) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def check_clean(small: Small) -> None:
    """Check that a cache is undamaged and equals a clean build."""
    assert small.digest() == small.clean_digest(small.folder / "clean")
    small.verify()

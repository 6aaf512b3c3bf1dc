"""Measure the time, on one core, and the memory of reading a label file of the published size.

    python benchmarks/labels.py [--images 752803]

The file is synthetic, in the published form: ID,Label, six lines per image, a few lines repeated. Each format is read
from disk by a separate process, so that the peak of memory is its own; the first line is for a process that has only
imported everything.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from frame import machine, peak_mb, timed

from pipeline.planning.catalog import LabelFile
from pipeline.tables.labels import read_labels

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


def write_files(folder: Path, images: int) -> list[Path]:
    """Write the same labels in the published form, and with one line per image."""
    rng = np.random.default_rng(0)
    names = [f"ID_{number:09x}" for number in rng.permutation(images) * 16381]
    labels = rng.integers(0, 2, (images, len(CLASSES)))
    long, wide = folder / "long.csv", folder / "wide.csv"
    with long.open("w") as file:
        file.write("ID,Label\n")
        for name, line in zip([*names, *names[:4]], [*labels, *labels[:4]], strict=True):
            file.writelines(f"{name}_{klass},{value}\n" for klass, value in zip(CLASSES, line, strict=True))
    with wide.open("w") as file:
        file.write(f"image_id,{','.join(CLASSES)}\n")
        file.writelines(f"{name},{','.join(map(str, line))}\n" for name, line in zip(names, labels, strict=True))
    return [long, wide]


def images_in(file: Path) -> int:
    return len(read_labels(LabelFile(filepath=str(file)), file.read_bytes(), CLASSES))


def read(file: Path | None) -> None:
    """Read one file, in this process, and print the time and memory."""
    images: list[int] = []
    took = timed(lambda: images.append(images_in(file) if file else 0))
    size = file.stat().st_size / 1e6 if file else 0
    seconds = f"{took.cpu:.2f} s of CPU, {took.wall:.2f} s of wall time"
    print(
        f"{file.name if file else 'nothing':<10}{size:>6.0f} MB{images[0]:>10,} images: {seconds}, {peak_mb():,.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=752_803)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read-nothing", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read or given.read_nothing:
        read(given.read)
        return
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        every = [["--read-nothing"], *(["--read", str(file)] for file in write_files(Path(folder), given.images))]
        for options in every:
            subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()

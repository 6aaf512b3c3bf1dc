"""Measure the cost of finding, joining and splitting patients who share slices, in a simulated data set.

    python -m benchmarks.linked --slices 750000 --groups 4073

Prints the CPU seconds of reading the candidates' images from memory, of `link` as a whole, and of the split with and
without it. The images are noise, so decoding is not included: per image, it takes as long as in the stream
(docs/stream.md).
"""

import time
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import pandas as pd

from training.data import pixels
from training.data.linked import link
from training.data.split import split_patients

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
SHARES = (0.7, 0.15, 0.15)
SLICES_OF_A_PATIENT = 40


@dataclass(frozen=True)
class Simulated:
    """The parts of a cache that `link` uses: a table, labels, and sums that are equal within a group."""

    table: pd.DataFrame
    stored: np.ndarray
    classes: tuple[str, ...] = CLASSES
    label_level: str = "slice"
    of_group: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def num_slices(self) -> int:
        return len(self.table)

    def labels(self) -> np.ndarray:
        return self.table[list(self.classes)].to_numpy(np.float32)

    def sums(self, size: int, rows: np.ndarray) -> np.ndarray:
        return self.stored[rows]


class Reader:
    """Reads an image of noise for each line, the same within a group."""

    def __init__(self, cache: Simulated, size: int, lines: np.ndarray) -> None:
        self.shape = (3, size, size)
        self._groups = cache.of_group[lines]
        self._noise = np.random.default_rng(0).integers(0, 256, 3 * size * size + 10_000, np.uint8)

    def read(self, which: np.ndarray, out: np.ndarray) -> None:
        start = int(self._groups[which[0]])
        out[0] = self._noise[start : start + out.shape[1]]


def simulate(slices: int, groups: int, seed: int) -> Simulated:
    """Simulate a data set with `groups` pairs of equal slices of different patients."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"patient_id": [f"ID_{n // SLICES_OF_A_PATIENT:08x}" for n in range(slices)]})
    table["row"] = np.arange(slices)
    findings = rng.random((slices, len(CLASSES))) < 0.1
    table[list(CLASSES)] = findings.astype(np.int8)
    stored = rng.integers(1, 1 << 40, (slices, 3, 2)).astype(np.uint64)
    pairs = rng.permutation(slices)[: 2 * groups].reshape(-1, 2)
    stored[pairs[:, 1]] = stored[pairs[:, 0]]
    of_group = np.zeros(slices, np.int64)
    of_group[pairs] = np.arange(groups)[:, None]
    return Simulated(table, stored, of_group=of_group)


@click.command()
@click.option("--slices", default=750_000, show_default=True)
@click.option("--groups", default=4073, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(slices: int, groups: int, size: int, seed: int) -> None:
    """Simulate a set and time each part."""
    cache: Any = simulate(slices, groups, seed)
    with patch.object(pixels, "SliceReader", Reader):
        began = time.process_time()
        found = pixels.same_pixels(cache, size)
        shared = time.process_time() - began
        began = time.process_time()
        links = link(cache, size)
        whole = time.process_time() - began
    began = time.process_time()
    split_patients(cache.table, CLASSES, SHARES, seed=0)
    plain = time.process_time() - began
    began = time.process_time()
    split_patients(cache.table, CLASSES, SHARES, seed=0, units=links.units)
    joined = time.process_time() - began
    click.echo(f"{slices:,} slices, {len(found):,} groups, {links.left_out.sum():,} slices left out")
    click.echo(
        f"same pixels {shared:.1f} s, all of link {whole:.1f} s, split {plain:.1f} s, split by units {joined:.1f} s"
    )


if __name__ == "__main__":
    main()

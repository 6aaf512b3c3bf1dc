"""Make the cache to train on, with as many slices as an epoch needs, but only a few on disk."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from testkit import fake_cache
from testkit.fake_cache import CLASSES, WINDOWS, commit_table, create_arrays, sums_of

SLICES = 32  # in a series
SHARD = 64  # rows


def make_cache(path: Path, size_px: int, distinct: int, copies: int) -> Path:
    """Write a cache of distinct x copies slices, of patients with 32 slices each.

    The shards of a copy are hard links, so neither disk nor memory holds more than the distinct slices. The sums of a
    copy differ by a grey level, since otherwise the trainer would join its patients to those of the original.

    Args:
        distinct: number of different slices, a multiple of 64.
        copies: how often each occurs.
    """
    rng, table = np.random.default_rng(0), make_table(distinct, copies)
    pixels = draw_slices(rng, table[list(CLASSES)].iloc[:distinct].to_numpy(float), size_px)

    zarr.create_group(path)
    images, sums = create_arrays(path, size_px, len(table), len(WINDOWS), SHARD, "lz4")
    images[:distinct] = pixels
    each = np.tile(sums_of(pixels), (copies, 1, 1))
    each[:, 0, 0] += np.repeat(np.arange(copies, dtype=np.uint64), distinct)
    sums[:] = each
    shards = path / f"images/{size_px}-0badcafe/c"
    for copy in range(distinct // SHARD, len(table) // SHARD):
        original = shards / str(copy % (distinct // SHARD)) / "0/0/0"
        (shards / str(copy) / "0/0").mkdir(parents=True)
        os.link(original, shards / str(copy) / "0/0/0")
    commit_table(path, table, CLASSES, WINDOWS, (size_px,), SHARD)
    return path


def make_table(distinct: int, copies: int) -> pd.DataFrame:
    """Return the table of distinct x copies slices; a copy has the labels of its original."""
    rng, names = np.random.default_rng(0), list(CLASSES)
    table = fake_cache.make_table(rng, distinct * copies // SLICES, SLICES, CLASSES, 0)
    table[names] = table[names].iloc[np.arange(len(table)) % distinct].to_numpy()
    table["row"] = np.arange(len(table))
    return table


def draw_slices(rng: np.random.Generator, labels: np.ndarray, size_px: int) -> np.ndarray:
    """Draw heads in air, (n, 3, S, S) uint8, that compress to a third, as real ones do; findings are bright squares."""
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    head = (x / 0.6) ** 2 + (y / 0.75) ** 2 < 1
    images = rng.integers(40, 90, (len(labels), len(WINDOWS), size_px, size_px), np.uint8)
    images *= head
    side = size_px // 8
    for k in range(labels.shape[1]):
        top, left = 3 * side + side * (k // 3), 3 * side + side * (k % 3)
        images[labels[:, k] == 1, :, top : top + side, left : left + side] = 230
    return images

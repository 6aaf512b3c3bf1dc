"""Train models of slices, of neighbouring slices and of series in the same way, and print the gain of each."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import zarr

from testkit.fake_cache import WINDOWS, commit_table, write_arrays
from training.data.cache import Cache
from training.run import job
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.loop import fit
from training.run.runs import Run, open_run
from training.run.task import Task
from training.scores.compare import CALIBRATED, compare, read_contestants
from training.series import job as series
from training.series.fit import fit_head
from training.series.mix import read_mix

HERE = Processes(0, 1, torch.device("cpu"))
RUNTIME = Runtime(device="cpu", input_threads=0)
ROWS = 256  # per shard
IMAGES = {"slice": 0, "context": 1}  # neighbouring slices before and after
HEADS = ("gru", "transformer")
SHOWN = (("weighted_log_loss", "all"), (CALIBRATED, "all"))


def write_slices(path: Path, images: np.ndarray, table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Write a cache of (N, C, S, S) uint8 images; it is renamed to `path` when it is complete.

    Args:
        path: folder of the cache.
        images: the images.
        table: one line per image in any order, with its index in `images` as `row`.
        classes: names of the classes.
    """
    unfinished, size = path.with_name(".unfinished"), images.shape[-1]
    shutil.rmtree(unfinished, ignore_errors=True)
    zarr.create_group(unfinished)
    stored = np.zeros((-(-len(images) // ROWS) * ROWS, *images.shape[1:]), np.uint8)
    stored[: len(images)] = images
    write_arrays(unfinished, size, stored, ROWS, "lz4")
    ordered = table.sort_values(["patient_id", "z_mm"], ignore_index=True)
    commit_table(unfinished, ordered, classes, WINDOWS, (size,), ROWS)
    unfinished.rename(path)


def train_images(path: Path, cache: Path, config: TrainConfig) -> tuple[Run, Cache]:
    """Train a run on images to its end, or resume it."""
    begun = (path / "settings.json").exists()
    run, opened = job.resume(path, None, {}) if begun else job.begin(path, cache, config, HERE)
    fit(Task(run, opened, RUNTIME, HERE))
    return run, opened


def train_heads(folder: Path, base: Path, values: Mapping[str, Any]) -> None:
    """Train or resume each of HEADS on a slice model's run, in FOLDER/<head>, and score it."""
    base_run, cache = series.open_base(base)
    series.features(Task(base_run, cache, RUNTIME, HERE), ())
    for name in HEADS:
        path, values = folder / name, {**values, "head": name}
        begun = (path / "settings.json").exists()
        run, _, _ = series.resume(path, None, {}) if begun else series.begin(path, base_run, cache, values, HERE)
        fit_head(Task(run, cache, RUNTIME, HERE), base_run)
        score(run, cache)


def score(run: Run, cache: Cache) -> None:
    """Score a run on validation, which fits its calibration, and then on test, unless it already has scores."""
    for subset in ("validation", "test"):
        if not (run.path / f"scores_{subset}.json").exists():
            job.evaluate(Task(run, cache, RUNTIME, HERE), subset, tta=False)


def print_head() -> None:
    """Print the head of the table of `print_gains`."""
    titles = ("slices", "model", "slice model", "this", "this - it, 95 % interval", "both calibrated", "head's share")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)


def print_gains(order: str, folder: Path) -> None:
    """Print a line for each of the runs FOLDER/context and FOLDER/<head>, compared with FOLDER/slice on test.

    It has the difference of the weighted log loss, with an interval by paired bootstrap over patients, and the same for
    logits that were calibrated on validation. The head's share is that of the first class.
    """
    for name in ("context", *HEADS):
        table = compare(read_contestants([folder / "slice", folder / name], "test"))
        lines = [table[(table["score"] == score) & (table["class"] == of)].iloc[0] for score, of in SHOWN]
        spans = [of["no_interval"] or f"{of['difference']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]" for of in lines]
        share = f"{read_mix(open_run(folder / name))[0]:.2f}" if name in HEADS else ""
        values = (f"{lines[0][column]:.4f}" for column in ("value_a", "value_b"))
        print(f"| {' | '.join((order, name, *values, *spans, share))} |", flush=True)

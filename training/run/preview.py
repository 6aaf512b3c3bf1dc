"""Summarise a run before it starts, with warnings about its split."""

import numpy as np

from training.data.cache import Cache
from training.data.linked import FILE as LINKED
from training.data.linked import describe, read_linked
from training.data.neighbours import SERIES
from training.data.split import SUBSETS
from training.run.config import TrainConfig
from training.run.distributed import Processes
from training.run.runs import Run
from training.run.schedule import Schedule
from training.run.streams import lines_of
from training.run.watch import TIMED_STEPS, WARM_UP_STEPS
from training.scores.metrics import SOFT_THRESHOLD
from training.words import counted

IMAGES_A_GPU = 64  # with fewer, a GPU waits for its host, and the statistics of batch norm are noisy


def preview(run: Run, cache: Cache, processes: Processes) -> list[str]:
    """Return the lines to print before training: device, network, subsets with positives per class, steps, warnings."""
    config = run.config
    subsets = {subset: lines_of(run, cache, subset) for subset in SUBSETS if run.has(subset)}
    schedule = Schedule(len(subsets["train"]), config)
    device = str(run.environment.get("device", processes.device.type))
    together = f"{processes.count} processes on {device}" if processes.count > 1 else device
    step = config.batch_size * config.accumulation
    lines = [
        f"{run.path}: {config.model} at {config.size_px} px, {config.weights} weights, on {together}",
        f"cache {cache.path}, commit {cache.commit}",
        *(_subset_line(cache, subset, lines) for subset, lines in subsets.items()),
        f"{counted(config.epochs, 'epoch')} of {counted(schedule.steps, 'step')} of {counted(step, 'slice')}, "
        f"{counted(schedule.total_steps, 'step')} in "
        f"all; a time estimate follows after {WARM_UP_STEPS + TIMED_STEPS} steps, or beforehand with --dry-run",
    ]
    if (run.path / LINKED).exists():
        lines += describe(read_linked(run.path / LINKED), cache.table["patient_id"].nunique())
    return lines + few_images(config, processes) + warnings(cache, subsets)


def few_images(config: TrainConfig, processes: Processes) -> list[str]:
    """Warn, with a remedy, if each GPU gets too few images of a batch; return nothing on a CPU."""
    images, count = config.batch_size // processes.count, processes.count
    if processes.device.type != "cuda" or images >= IMAGES_A_GPU:
        return []
    more = f"give --batch-size {IMAGES_A_GPU * count} or more, if memory allows"
    if count > 1:
        if fewer := config.batch_size // IMAGES_A_GPU:
            more += f", or --nproc-per-node {fewer}"
        more += "; --set sync_batch_norm=true computes the statistics over all GPUs"
    return [
        f"warning: a batch of {config.batch_size} over {count} GPUs has {images} images for each: too few to keep a "
        f"GPU busy, and few for batch-norm statistics: {more}"
    ]


def _subset_line(cache: Cache, subset: str, lines: np.ndarray) -> str:
    table, positive = cache.table.iloc[lines], positives(cache, lines)
    found = ", ".join(f"{name} {count:,}" for name, count in positive.items())
    patients, series = table["patient_id"].nunique(), len(table[SERIES].drop_duplicates())
    counts = f"{counted(patients, 'patient')}, {counted(series, 'series')}, {counted(len(lines), 'slice')}"
    return f"{subset:<10} {counts}; positive: {found}"


def positives(cache: Cache, lines: np.ndarray) -> dict[str, int]:
    """Return the number of positive lines for each class."""
    counts = (cache.labels()[lines] >= SOFT_THRESHOLD).sum(axis=0)  # false for NaN
    return dict(zip(cache.classes, counts.tolist(), strict=True))


def warnings(cache: Cache, subsets: dict[str, np.ndarray]) -> list[str]:
    """Warn about classes without positive slices in a subset, and explain the consequences."""
    meaning = {
        "train": "the network cannot learn it",
        "validation": "no threshold or calibration can be chosen for it",
        "test": "its recall and ROC AUC will be undefined",
    }
    lines = []
    for subset, found in subsets.items():
        if missing := [name for name, count in positives(cache, found).items() if not count]:
            lines.append(f"warning: {subset} has no positive slice of {', '.join(missing)}: {meaning[subset]}")
    return lines

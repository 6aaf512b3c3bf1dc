"""Open streams of a run's slices, for training, for evaluation, or for one process alone."""

import numpy as np

from training.data.cache import Cache
from training.data.stream import Draw, Stream
from training.errors import ConfigError, RunError
from training.run.runs import Run
from training.run.task import Task

EVALUATED_TOGETHER = 256  # maximum batch size, as a training batch may be too large for one process


def lines_of(run: Run, cache: Cache, subset: str) -> np.ndarray:
    """Return the lines of a subset of the run's split, (n,) int64, that have any label and are not left out.

    Raises:
        RunError: if there are none, although the run has this subset.
    """
    labelled = ~np.isnan(cache.labels()).all(axis=1)
    lines = np.flatnonzero(labelled & (run.subsets(cache) == subset) & ~run.left_out(cache))
    if not len(lines) and run.has(subset):
        where = f"{run.path}: no slice with a label in the {subset} set of split.csv"
        raise RunError(f"{where}; build with more labels and start a new run")
    return lines


def open_stream(task: Task, lines: np.ndarray, draw: Draw) -> Stream:
    """Open a stream over lines of the cache for training, whose global batches are divided among all processes.

    Args:
        draw: the random numbers to draw for them on the host.

    Raises:
        ConfigError: if the batch size is not a multiple of the number of processes, or a process could get an empty
            part of a batch.
    """
    batch_size, count = task.config.batch_size, task.processes.count
    if batch_size % count:
        raise ConfigError(
            f"batch_size: {batch_size} is not divisible by {count} processes; set --batch-size to a multiple, or "
            "--nproc-per-node to a divisor"
        )
    # Every batch is more than half full, so with two images per process none of them is left without one.
    if count > 1 and (batch_size < 2 * count or len(lines) < count):
        raise ConfigError(
            f"batch_size: {batch_size} over {count} processes and {len(lines)} training slices leaves a process "
            f"without an image; set --batch-size to {2 * count} or more, or a lower --nproc-per-node"
        )
    return _open(task, lines, batch_size // count, draw)


def open_evaluation(task: Task, lines: np.ndarray) -> Stream:
    """Open a stream over this process's share of lines of the cache for prediction: every n-th batch, with n processes.

    The batches are the same for any number of processes, because sums over batches of another size would differ in the
    last float32 bits.
    """
    size = min(task.config.batch_size, EVALUATED_TOGETHER)
    lines = np.sort(lines)
    own = np.arange(len(lines)) // size % task.processes.count == task.processes.rank
    return _open(task, lines[own], size)


def open_plain(task: Task, lines: np.ndarray) -> Stream:
    """Open a stream over lines of the cache for this process alone."""
    return _open(task, np.sort(lines), EVALUATED_TOGETHER)


def _open(task: Task, lines: np.ndarray, batch_size: int, draw: Draw | None = None) -> Stream:
    return Stream(
        task.cache,
        task.config.size_px,
        lines,
        batch_size,
        threads=task.runtime.input_threads,
        ahead=task.runtime.batches_ahead,
        pin=task.device.type == "cuda",
        context=task.run.context,
        draw=draw,
    )

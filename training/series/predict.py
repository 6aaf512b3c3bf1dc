"""Predictions of slices with a head over their series, mixed per class with the slice model's own logits."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from training.data.cache import Cache
from training.errors import RunError
from training.model.network import FusionNet
from training.model.weights import load_own
from training.run.digests import check
from training.run.distributed import Processes
from training.run.runs import Run, digest, open_run
from training.run.setup import load_slice_network
from training.run.task import Task
from training.series.batches import SeriesSet, gather, in_blocks, series_of
from training.series.features import Features, check_alone, extract, read_features
from training.series.head import SeriesHead
from training.series.mix import read_mix, sigmoid
from training.series.store import MissingFeatures, store_path

BATCH_SERIES = 64
BLOCK_SLICES = 16_384  # with features in memory at a time


@dataclass(frozen=True)
class SeriesPredictions:
    """The predictions of a run with a head.

    Attributes:
        lines: (n,) int64 lines of the cache's table, ascending.
        probabilities: (n, K) float64, of slice model and head combined.
        of_slices: (n, K) float64, of the slice model alone.
    """

    lines: np.ndarray
    probabilities: np.ndarray
    of_slices: np.ndarray


def predict_series(task: Task, lines: np.ndarray, *, tta: bool, net: FusionNet | None = None) -> SeriesPredictions:
    """Predict slices of a cache with a head over their complete series, including slices that are not in `lines`.

    Slices without z_mm have no place in a series and keep the slice model's logits. Features are read from the store of
    the slice model's run if it is for the same commit, and otherwise computed.

    Args:
        task: the head's run, a cache that suits it, and a single process.
        lines: (n,) lines of the cache's table.
        tta: whether to use the means over the TTA views.
        net: the run's slice network, if it is already in memory.

    Raises:
        RunError: if the run has no weights yet, or the cache has other windows or classes.
        CacheError: if no slice has a z_mm.
        ConfigError: if there are several processes.
    """
    check_alone(task.processes)
    run, cache, lines = task.run, task.cache, np.sort(lines)
    head, shares = load_head(run, task.processes), read_mix(run)
    base_logits = np.empty((cache.num_slices, len(run.data.classes)))
    mixed = np.empty_like(base_logits)
    source = _Source(task, tta=tta, net=net)
    order = series_of(cache, lines)
    for block in in_blocks(order, BLOCK_SLICES):
        of = gather(cache, block, source.get(block.lines))
        correction = corrections(head, of, task.device)
        base_logits[of.lines] = of.logits
        mixed[of.lines] = of.logits + shares * correction
    unplaced = np.setdiff1d(lines, order.lines)
    if len(unplaced):
        base_logits[unplaced] = mixed[unplaced] = source.get(unplaced).logits
    return SeriesPredictions(lines, sigmoid(mixed[lines]), sigmoid(base_logits[lines]))


class _Source:
    """The source of features: the store of the slice model's run if it is usable, otherwise the images."""

    def __init__(self, task: Task, *, tta: bool, net: FusionNet | None) -> None:
        self._task, self._tta, self._net = task, tta, net
        self._base = _stored_at(task.run, task.cache, tta=tta)

    def get(self, lines: np.ndarray) -> Features:
        """Return the features of slices."""
        if self._base is not None:
            try:
                return read_features(self._base, self._task.cache, lines, tta=self._tta)
            except MissingFeatures:  # compute them from the images
                self._base = None
            except RunError as damaged:
                _print_damaged(damaged)
                self._base = None
        self._net = self._net or load_slice_network(self._task.run, self._task.processes)
        return extract(self._task, self._net, lines, tta=self._tta)


def _stored_at(run: Run, cache: Cache, *, tta: bool) -> Run | None:
    """Return the slice model's run if it is still there, has the same weights, and has features of this commit."""
    try:
        where = Path(run.data.base)
        if not (where / "settings.json").exists():  # it has been moved or removed
            return None
        base = open_run(where)
        if cache.commit != run.data.commit or digest(base.weights) != run.data.base_weights:
            return None
        return base if store_path(base, tta=tta).exists() else None
    except RunError as damaged:
        _print_damaged(damaged)
        return None


def _print_damaged(error: RunError) -> None:
    tqdm.write(f"{error}; reading the images instead", sys.stderr)


def corrections(head: SeriesHead, of: SeriesSet, device: torch.device) -> np.ndarray:
    """Return the head's correction of every slice's logits, (n, K) float64."""
    found = np.empty(of.logits.shape)
    head.eval()
    with torch.inference_mode():
        for first in range(0, len(of), BATCH_SERIES):
            batch, which = of.batch(np.arange(first, min(first + BATCH_SERIES, len(of))), device)
            found[which[which >= 0]] = head(batch)[batch.real].double().cpu().numpy()
    return found


def load_head(run: Run, processes: Processes) -> SeriesHead:
    """Build a run's head with its best weights.

    Raises:
        RunError: if there are none yet, or they cannot be used.
    """
    if not run.weights.is_file():
        raise RunError(
            f"{run.weights}: no weights yet; train an epoch first: train series --resume {run.path}; "
            "if the run has trained one, restore the file, or train a new run"
        )
    check(run.weights, "restore it, or train a new run")
    try:
        state = load_file(run.weights)
        head = SeriesHead(len(state["norm.weight"]), len(run.data.classes), run.config)
        load_own(head, state)
    except Exception as error:  # safetensors and torch each raise their own types
        raise RunError(f"{run.weights}: not the weights of this run's head ({str(error).splitlines()[0]})") from error
    return head.to(processes.device).eval()

"""Predict slices with a head over their series, mixed by class with the slice model's own logits."""

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
from training.run.config import Runtime
from training.run.digests import check
from training.run.distributed import Processes
from training.run.runs import Run, digest, open_run
from training.run.setup import load_slice_network
from training.series.batches import SeriesSet, gather, in_blocks, series_of
from training.series.features import Features, check_alone, extract, read_features
from training.series.head import SeriesHead
from training.series.mix import read_mix, sigmoid
from training.series.store import MissingFeatures, store_path

TOGETHER = 64  # series at a time
BLOCK_SLICES = 16_384  # whose features are held in memory at a time


@dataclass(frozen=True)
class SeriesPredictions:
    """What a run with a head says of slices.

    Attributes:
        lines: (n,) int64 lines of the cache's table, ascending.
        probabilities: (n, K) float64, of slice model and head mixed.
        of_slices: (n, K) float64, of the slice model alone.
    """

    lines: np.ndarray
    probabilities: np.ndarray
    of_slices: np.ndarray


def predict_series(
    run: Run,
    cache: Cache,
    lines: np.ndarray,
    runtime: Runtime,
    processes: Processes,
    *,
    tta: bool,
    net: FusionNet | None = None,
) -> SeriesPredictions:
    """Predict slices of a cache with a head over their series, each read whole, whichever lines are asked for.

    Slices without z_mm have no place in a series and keep the slice model's logits. Features come from the store of
    the slice model's run where that is of the same cache, or else are computed.

    Args:
        net: the run's network that looks at slices, where it is in memory already.

    Raises:
        RunError: no weights yet, or a cache of other windows or classes. CacheError: no slice has a z_mm.
        ConfigError: several processes.
    """
    check_alone(processes)
    lines = np.sort(lines)
    head, shares = load_head(run, processes), read_mix(run)
    base_logits = np.empty((cache.num_slices, len(run.data.classes)))
    mixed = np.empty_like(base_logits)
    source = _Source(run, cache, runtime, processes, tta=tta, net=net)
    order = series_of(cache, lines)
    for block in in_blocks(order, BLOCK_SLICES):
        of = gather(cache, block, source.get(block.lines))
        correction = corrections(head, of, processes.device)
        base_logits[of.lines] = of.logits
        mixed[of.lines] = of.logits + shares * correction
    unplaced = np.setdiff1d(lines, order.lines)
    if len(unplaced):
        base_logits[unplaced] = mixed[unplaced] = source.get(unplaced).logits
    return SeriesPredictions(lines, sigmoid(mixed[lines]), sigmoid(base_logits[lines]))


class _Source:
    """Where features come from: the store of the slice model's run where that will do, or else the images."""

    def __init__(
        self, run: Run, cache: Cache, runtime: Runtime, processes: Processes, *, tta: bool, net: FusionNet | None
    ) -> None:
        self._of = run, cache, runtime, processes
        self._tta = tta
        self._net = net
        self._base = _stored_at(run, cache, tta=tta)

    def get(self, lines: np.ndarray) -> Features:
        """Return the features of slices."""
        run, cache, runtime, processes = self._of
        if self._base is not None:
            try:
                return read_features(self._base, cache, lines, tta=self._tta)
            except MissingFeatures:  # the images will do
                self._base = None
            except RunError as damaged:
                _say_damaged(damaged)
                self._base = None
        self._net = self._net or load_slice_network(run, processes)
        return extract(self._net, run, cache, lines, runtime, processes=processes, tta=self._tta)


def _stored_at(run: Run, cache: Cache, *, tta: bool) -> Run | None:
    """Return the slice model's run if it is where it was, with the same weights, and has features of this commit."""
    try:
        where = Path(run.data.base)
        if not (where / "settings.json").exists():  # it is no longer where it was
            return None
        base = open_run(where)
        if cache.commit != run.data.commit or digest(base.weights) != run.data.base_weights:
            return None
        return base if store_path(base, tta=tta).exists() else None
    except RunError as damaged:
        _say_damaged(damaged)
        return None


def _say_damaged(error: RunError) -> None:
    tqdm.write(f"{error}; reading the images instead", sys.stderr)


def corrections(head: SeriesHead, of: SeriesSet, device: torch.device) -> np.ndarray:
    """Return the head's correction of every slice's logits, (n, K) float64."""
    found = np.empty(of.logits.shape)
    head.eval()
    with torch.inference_mode():
        for first in range(0, len(of), TOGETHER):
            batch, which = of.batch(np.arange(first, min(first + TOGETHER, len(of))), device)
            found[which[which >= 0]] = head(batch)[batch.real].double().cpu().numpy()
    return found


def load_head(run: Run, processes: Processes) -> SeriesHead:
    """Build a run's head with its best weights.

    Raises:
        RunError: there are none yet, or they cannot be used.
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
    except Exception as error:  # safetensors and torch each have their own
        raise RunError(f"{run.weights}: not the weights of this run's head ({str(error).splitlines()[0]})") from error
    return head.to(processes.device).eval()

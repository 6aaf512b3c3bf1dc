"""Pooled features and logits of slices: computing them, and writing them to and reading them from a run's store."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.data.batches import Batch
from training.data.cache import Cache
from training.data.copies import on_device
from training.errors import ConfigError
from training.model.augment import Normalise
from training.model.network import FusionNet
from training.run.distributed import Processes
from training.run.inference import views
from training.run.runs import Run, check_compatible
from training.run.setup import load_slice_network
from training.run.streams import open_plain
from training.run.task import Task
from training.series.store import MissingFeatures, make_store, open_store, store_path
from training.system import reserve
from training.words import counted


@dataclass(frozen=True)
class Features:
    """The slice model's output for some slices.

    Attributes:
        lines: (n,) int64 lines of the cache's table, ascending.
        features: (n, D) float16, the backbone's pooled output.
        logits: (n, K) float32.
    """

    lines: np.ndarray
    features: np.ndarray
    logits: np.ndarray


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty array for features, in memory."""
    return np.empty(shape, np.float16)


def on_disk(folder: Path) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Return a function that creates an array for features in an unnamed file in a folder, deleted with the array.

    The system caches such an array in memory as far as there is room: 3.1 GB for RSNA 2019 and 2,048 features.
    """

    def make(shape: tuple[int, ...]) -> np.ndarray:
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, 2 * math.prod(shape))  # a disk found to be full later would kill the process
            return np.memmap(file, np.float16, "w+", shape=shape)

    return make


def write_features(task: Task, lines: np.ndarray, *, tta: bool) -> int:
    """Write features and logits of those slices that are missing or damaged in the store.

    If it is stopped, the next call resumes. The store has the arrays `features` (N, D) float16, `logits` (N, K) float32
    and `done` (N,) uint8, in the order of the commit's table, and the attributes `commit`, `weights` (SHA-256 of
    weights.safetensors), `size_px` and `tta`.

    Args:
        task: the slice model's run, the cache, and a single process.
        lines: (n,) lines of the cache's table.
        tta: whether to write the means over the TTA views, to a store of their own.

    Returns:
        The number of slices written.

    Raises:
        RunError: if the store is for other weights or another commit, has damaged documents, or cannot be written.
        ConfigError: if there are several processes.
    """
    check_alone(task.processes)
    run, cache = task.run, task.cache
    net = load_slice_network(run, task.processes)
    if not store_path(run, tta=tta).exists():
        make_store(run, cache, _count_features(net, run), tta=tta)
    store = open_store(run, cache, tta=tta)
    wanted = np.setdiff1d(lines, np.flatnonzero(store.done()))
    with tqdm(total=len(wanted), unit="slice", desc="features", disable=None) as bar:
        for first, end in store.blocks():
            block = wanted[(wanted >= first) & (wanted < end)]
            if len(block):
                found = extract(task, net, block, tta=tta)
                store.write(first, end, block - first, (found.features, found.logits))
                bar.update(len(block))
    return len(wanted)


def read_features(
    run: Run,
    cache: Cache,
    lines: np.ndarray,
    *,
    tta: bool,
    allocate: Callable[[tuple[int, ...]], np.ndarray] = in_memory,
) -> Features:
    """Read features and logits of slices from the store of a slice model's run, block by block.

    Args:
        run: the slice model's run.
        cache: the cache.
        lines: (n,) lines of the cache's table.
        tta: whether to read the means over the TTA views.
        allocate: creates the (n, D) float16 array for the features: `in_memory`, or the result of `on_disk`.

    Raises:
        MissingFeatures: if there is no store, or some of the slices are missing.
        RunError: if the store is for other weights or another commit, or damaged.
    """
    store, lines = open_store(run, cache, tta=tta), np.sort(lines)
    logits = np.empty((len(lines), len(run.data.classes)), np.float32)
    features, missing = allocate((len(lines), store.shape[1])), 0
    for first, end in store.blocks():
        of = slice(*np.searchsorted(lines, (first, end)))
        if of.start == of.stop:
            continue
        block, places = store.read(first, end), lines[of] - first
        features[of], logits[of] = block.features[places], block.logits[places]
        missing += int((block.done[places] == 0).sum())
    if missing:
        raise MissingFeatures(f"{store.path}: lacks the features of {counted(missing, 'slice')}; {store.remedy}")
    return Features(lines, features, logits)


def extract(task: Task, net: FusionNet, lines: np.ndarray, *, tta: bool) -> Features:
    """Compute features and logits of slices of a cache.

    With TTA these are the mean features over the views, and the logit of the mean probability.

    Raises:
        RunError: if the cache has other windows or classes than the run.
        CacheError: if the cache does not have the run's image size.
    """
    check_compatible(task.run, task.cache)
    normalise = Normalise(*task.run.mean_std, task.device)
    lines = np.sort(lines)
    batches = on_device(open_plain(task, lines).epoch(0, 0, shuffle=False), task.device)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), closing(batches):
        for batch in batches:
            features, logits = _extract_batch(net, batch, normalise, bf16=task.config.bf16, tta=tta)
            parts.append((features.half().cpu().numpy(), logits.cpu().numpy()))
    return Features(lines, *(np.concatenate(of) for of in zip(*parts, strict=True)))


def check_alone(processes: Processes) -> None:
    """Raise a ConfigError if there are several processes, which series do not support."""
    if processes.count > 1:
        raise ConfigError("features and heads over series need a single process; run the command without torchrun")


def _extract_batch(
    net: FusionNet, batch: Batch, normalise: Normalise, *, bf16: bool, tta: bool
) -> tuple[Tensor, Tensor]:
    """Return features (B, D) and logits (B, K), both float32."""
    each = list(_views(net, batch, normalise, bf16=bf16, tta=tta))
    if len(each) == 1:
        return each[0]
    features = torch.stack([of for of, _ in each]).mean(0)
    probabilities = torch.stack([torch.sigmoid(logits.double()) for _, logits in each]).mean(0)
    return features, torch.logit(probabilities).float()


def _views(
    net: FusionNet, batch: Batch, normalise: Normalise, *, bf16: bool, tta: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    grey = batch.images.float().div_(255)
    on_gpu = grey.device.type == "cuda"
    for view in views(grey, tta=tta):
        with torch.autocast(grey.device.type, torch.bfloat16, enabled=bf16 and on_gpu):
            features = net.backbone(normalise(view.contiguous(memory_format=torch.channels_last)))
            logits = net.logits(features, batch.z_norm)
        yield features.float(), logits.float()


def _count_features(net: FusionNet, run: Run) -> int:
    """Return D, the number of features, from the shapes of the network's layers."""
    width = run.config.position_features if run.config.position else 0
    return net.fuse.in_features - width

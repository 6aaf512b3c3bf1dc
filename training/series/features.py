"""Write the pooled features and the logits of every slice to a Zarr store in the run's folder."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from tqdm import tqdm
from zarr.codecs import Crc32cCodec

from training.data.cache import Cache
from training.data.stream import Batch, on_device
from training.errors import ConfigError, RunError
from training.model.augment import Normalise
from training.model.network import FusionNet
from training.run.config import Runtime
from training.run.distributed import Processes
from training.run.inference import views
from training.run.runs import Run, check_same_kind, digest
from training.run.setup import load_slice_network, open_plain
from training.words import counted

# Lines of the table in one chunk, which is one file: 2 MB of 2,048 features.
CHUNK_LINES = 512
BLOCK_LINES = 8192  # lines between two notes of what is done


@dataclass(frozen=True)
class Features:
    """What the slice model says of some slices.

    Attributes:
        lines: (n,) int64 lines of the cache's table, ascending.
        features: (n, D) float16, the backbone's pooled output.
        logits: (n, K) float32.
    """

    lines: np.ndarray
    features: np.ndarray
    logits: np.ndarray


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """Make an array for features."""
    return np.empty(shape, np.float16)


def on_disk(folder: Path) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Return what makes an array for features in a file of the folder without a name, which goes with the array.

    Of such an array the system keeps in memory what there is room for: 3.1 GB for RSNA 2019 and 2,048 features.
    """

    def make(shape: tuple[int, ...]) -> np.ndarray:
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, np.float16, "w+", shape=shape)

    return make


def store_path(run: Run, *, tta: bool) -> Path:
    """Where the features of a slice model's run lie."""
    return run.path / f"features{'_tta' if tta else ''}.zarr"


def write_features(
    run: Run, cache: Cache, lines: np.ndarray, runtime: Runtime, processes: Processes, *, tta: bool
) -> int:
    """Write features and logits of slices that the store does not have yet; stopped anywhere, it goes on when called.

    The store has the arrays `features` (N, D) float16, `logits` (N, K) float32 and `done` (N,) uint8, in the order of
    the commit's table, and the attributes `commit`, `weights` (SHA-256 of weights.safetensors), `size_px` and `tta`.

    Args:
        lines: (n,) lines of the cache's table.

    Returns:
        how many were written.

    Raises:
        RunError: the store is of other weights or of another commit. ConfigError: several processes.
    """
    check_alone(processes)
    net = load_slice_network(run, processes)
    store = _open_store(run, cache, _count_features(net, run), tta=tta)
    done = store["done"][:].astype(bool)
    wanted = np.setdiff1d(lines, np.flatnonzero(done))
    with tqdm(total=len(wanted), unit="slice", desc="features", disable=None) as bar:
        for first in range(0, cache.num_slices, BLOCK_LINES):
            block = wanted[(wanted >= first) & (wanted < first + BLOCK_LINES)]
            if not len(block):
                continue
            found = extract(net, run, cache, block, runtime, processes=processes, tta=tta)
            of = slice(first, min(first + BLOCK_LINES, cache.num_slices))
            for name, values in (("features", found.features), ("logits", found.logits), ("done", np.uint8(1))):
                content = store[name][of]
                content[block - first] = values
                store[name][of] = content  # `done` comes last: killed before it, the block is computed again
            bar.update(len(block))
    return len(wanted)


def read_features(
    run: Run,
    cache: Cache,
    lines: np.ndarray,
    *,
    tta: bool,
    hold: Callable[[tuple[int, ...]], np.ndarray] = in_memory,
) -> Features:
    """Read features and logits of slices from the store of a slice model's run, BLOCK_LINES of it at a time.

    Args:
        lines: (n,) lines of the cache's table.
        hold: makes the (n, D) float16 array that the features are read to, `on_disk` say.

    Raises:
        RunError: there is none, it is of other weights or another commit, lacks some of the slices, or is damaged.
    """
    path, store = store_path(run, tta=tta), open_features(run, cache, tta=tta)
    lines = np.sort(lines)
    try:
        missing = int((store["done"][:][lines] == 0).sum())
        if missing:
            raise RunError(f"{path}: lacks the features of {counted(missing, 'slice')}; {_way_out(run, tta=tta)}")
        features, logits = hold((len(lines), store["features"].shape[1])), store["logits"][:][lines]
        for first in range(0, cache.num_slices, BLOCK_LINES):
            begin, end = np.searchsorted(lines, (first, first + BLOCK_LINES))
            if begin < end:
                features[begin:end] = store["features"][first : first + BLOCK_LINES][lines[begin:end] - first]
        return Features(lines, features, logits)
    except (KeyError, ValueError, OSError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove it, then {_way_out(run, tta=tta)}") from error


def open_features(run: Run, cache: Cache, *, tta: bool) -> Any:
    """Open the store of a slice model's run.

    Raises:
        RunError: there is none, or it is of other weights or another commit.
    """
    path = store_path(run, tta=tta)
    if not path.exists():
        raise RunError(f"{path}: there are no features yet; {_way_out(run, tta=tta)}")
    store = _open(path)
    _check(store, path, _attributes(run, cache, tta=tta))
    return store


def _way_out(run: Run, *, tta: bool) -> str:
    return f"run: train features --run {run.path}{' --tta' if tta else ''}"


def extract(
    net: FusionNet, run: Run, cache: Cache, lines: np.ndarray, runtime: Runtime, *, processes: Processes, tta: bool
) -> Features:
    """Compute features and logits of slices of a cache; with TTA the features' mean, and the logit of the mean.

    Raises:
        RunError: the cache has other windows or classes than the run.
    """
    check_same_kind(run, cache)
    normalise = Normalise(*run.mean_std, processes.device)
    lines = np.sort(lines)
    stream = open_plain(run, cache, lines, runtime, processes)
    batches = on_device(stream.epoch(0, 0, shuffle=False), processes.device)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), closing(batches):
        for batch in batches:
            features, logits = _extract_batch(net, batch, normalise, bf16=run.config.bf16, tta=tta)
            parts.append((features.half().cpu().numpy(), logits.cpu().numpy()))
    return Features(lines, *(np.concatenate(of) for of in zip(*parts, strict=True)))


def check_alone(processes: Processes) -> None:
    """Raise a ConfigError unless there is one process: series are read by one."""
    if processes.count > 1:
        raise ConfigError("features and heads over series are computed by one process; start it without torchrun")


def _extract_batch(
    net: FusionNet, batch: Batch, normalise: Normalise, *, bf16: bool, tta: bool
) -> tuple[Tensor, Tensor]:
    """Return features (B, D) and logits (B, K), float32."""
    grey = batch.images.float().div_(255)
    each = list(_views(net, grey, batch.z_norm, normalise, bf16=bf16, tta=tta))
    if len(each) == 1:
        return each[0]
    features = torch.stack([of for of, _ in each]).mean(0)
    probabilities = torch.stack([torch.sigmoid(logits.double()) for _, logits in each]).mean(0)
    return features, torch.logit(probabilities).float()


def _views(
    net: FusionNet, grey: Tensor, z_norm: Tensor, normalise: Normalise, *, bf16: bool, tta: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    on_gpu = grey.device.type == "cuda"
    for view in views(grey, tta=tta):
        with torch.autocast(grey.device.type, torch.bfloat16, enabled=bf16 and on_gpu):
            features = net.backbone(normalise(view.contiguous(memory_format=torch.channels_last)))
            logits = net.judge(features, z_norm)
        yield features.float(), logits.float()


def _open_store(run: Run, cache: Cache, num_features: int, *, tta: bool) -> Any:
    path, attributes = store_path(run, tta=tta), _attributes(run, cache, tta=tta)
    if path.exists():
        store = _open(path)
        _check(store, path, attributes)
        return store
    unfinished = path.with_name(f".unfinished.{path.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    store = zarr.create_group(unfinished, attributes=attributes)
    n, k = cache.num_slices, len(run.data.classes)
    for name, shape, dtype in (
        ("features", (n, num_features), "float16"),
        ("logits", (n, k), "float32"),
        ("done", (n,), "uint8"),
    ):
        chunks = (CHUNK_LINES, *shape[1:])
        store.create_array(name, shape=shape, chunks=chunks, dtype=dtype, compressors=[Crc32cCodec()], fill_value=0)
    unfinished.rename(path)
    return _open(path)


def _open(path: Path) -> Any:
    try:
        return zarr.open_group(path, mode="r+")
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: cannot be read as features ({error}); remove it and run train features") from error


def _attributes(run: Run, cache: Cache, *, tta: bool) -> dict[str, Any]:
    return {
        "commit": cache.commit,
        "weights": digest(run.slice_weights),
        "size_px": run.config.size_px,
        "tta": tta,
    }


def _check(store: Any, path: Path, wanted: dict[str, Any]) -> None:
    """Raise a RunError unless a store is of the wanted weights and commit."""
    for name, value in wanted.items():
        if (there := store.attrs.get(name)) != value:
            raise RunError(
                f"{path}: is of other {name} ({str(there)[:16]} there, {str(value)[:16]} wanted); "
                f"remove it, then run: train features --run {path.parent}"
            )


def _count_features(net: FusionNet, run: Run) -> int:
    """Return D, of a network on any device, without computing anything of weight."""
    width = run.config.position_features if run.config.position else 0
    return net.fuse.in_features - width

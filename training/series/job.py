"""Jobs with series: writing a run's features, and training a head from its new folder to its report."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from training.data.cache import Cache, open_cache
from training.data.mirror import absolute
from training.data.neighbours import order_series
from training.errors import CacheError, RunError
from training.model.loss import choose_loss
from training.run import config as settings
from training.run.config import TrainConfig
from training.run.digests import check
from training.run.distributed import Processes
from training.run.job import environment, finish
from training.run.owner import owned
from training.run.runs import NewRun, Run, check_free, create_run, digest, new_folder, open_run
from training.run.task import Task
from training.scores.content import open_own_cache, read_content, write_content
from training.series.features import check_alone, write_features
from training.series.fit import fit_head
from training.series.store import open_store

# Default settings of a head. Features are frozen and series are few, so the head is small and has much dropout, and
# epochs are cheap. A batch is 16 series, about 500 slices.
DEFAULTS: dict[str, Any] = {
    "head": "gru",
    "epochs": 20,
    "batch_size": 16,
    "accumulation": 1,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "dropout": 0.3,
    "patience_epochs": 5,
    "ema_decay": 0.0,
    "frozen_epochs": 0,
    "mixup_alpha": 0.0,
    "compile": False,
    "sync_batch_norm": False,
}
# Settings that the slice model determines.
SLICE_SETTINGS = frozenset(("model", "weights", "size_px", "context", "context_windows", "split_fractions"))
SLICE_SETTINGS |= {"position", "position_features", "fusion_features"}


def open_for_features(path: Path, cache_path: str | Path | None, local_copy: Path | None) -> tuple[Run, Cache]:
    """Open a slice model's run and its cache, or one with the same content, to compute features.

    Args:
        path: the slice model's run.
        cache_path: its cache; None for the one recorded in the run.
        local_copy: see `open_cache`.

    Raises:
        RunError: if the run is itself a head, or the cache has other content.
    """
    run = open_run(path)
    if run.has_head:
        raise RunError(f"{path}: is a head over series; features are those of its slice model: {run.data.base}")
    return run, open_own_cache(run, cache_path, local_copy)


def features(task: Task, subsets: Sequence[str], *, tta: bool = False) -> int:
    """Write the missing features of a run's slices, and return how many there were.

    Args:
        task: the slice model's run, its cache, and a single process.
        subsets: subsets of the run's split; empty for every slice of the cache.
        tta: whether to write the means over the TTA views.

    Raises:
        RunError: if the run has no weights, the store is for other weights or another commit, or another process is
            using the run's folder.
        ConfigError: if there are several processes.
    """
    run, cache = task.run, task.cache
    lines = np.flatnonzero(np.isin(run.subsets(cache), subsets)) if subsets else np.arange(cache.num_slices)
    check_alone(task.processes)
    with owned(run.path, "is writing its features"):
        return write_features(task, lines, tta=tta)


def open_base(path: Path, cache_path: str | Path | None = None, local_copy: Path | None = None) -> tuple[Run, Cache]:
    """Open a slice model's run and the commit that it was trained on, for a head.

    Args:
        path: the slice model's run.
        cache_path: its cache; None for the one recorded in the run.
        local_copy: see `open_cache`.

    Raises:
        RunError: if the run is itself a head, or the cache does not have the commit.
    """
    base = open_run(path)
    if base.has_head:
        raise RunError(f"{path}: is itself a head over series; give the slice model's run, {base.data.base}")
    return base, _own_cache(base, cache_path, local_copy)


def begin(
    path: Path, base: Run, cache: Cache, values: Mapping[str, Any], processes: Processes
) -> tuple[Run, Run, Cache]:
    """Create the folder of a new head's run, with the weights and the split of the slice model.

    Args:
        path: folder to create.
        base, cache: the slice model's run and its cache, from `open_base`.
        values: settings that differ from DEFAULTS; not those that the slice model determines.
        processes: a single process.

    Returns:
        The run, the slice model's run, and the cache.

    Raises:
        TrainingError: if the folder is not free, a setting is not allowed, or the slice model has no features of its
            weights and commit.
    """
    check_alone(processes)
    check_free(path)
    config = head_config(base, values)
    choose_loss(config)
    order_series(cache)
    check(base.weights, "restore it, or train a new run")
    open_store(base, cache, tta=False)
    subsets, linked = base.subsets(cache), base.linked()
    with new_folder(path):
        write_content(path, read_content(base.path))
        shutil.copyfile(base.weights, path / "slice_weights.safetensors")
        known = {"base": absolute(str(base.path)), "base_weights": digest(base.weights)}
        mean_std = np.array(base.data.mean), np.array(base.data.std)
        about = environment(config, processes) | {"weights": base.environment.get("weights", "not recorded")}
        create_run(path, cache, NewRun(config, subsets, mean_std, about, linked, known))
    return open_run(path), base, cache


def head_config(base: Run, values: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a head: those of its slice model, overridden by DEFAULTS and then by `values`.

    Raises:
        ConfigError: if a setting is unknown or invalid.
        RunError: if the slice model determines a setting, or it applies to images.
    """
    wanted = settings.from_mapping(settings.to_mapping(base.config) | dict(values))
    for name in sorted(SLICE_SETTINGS & values.keys()):
        if getattr(wanted, name) != getattr(base.config, name):
            raise RunError(f"--set {name}: is taken from the slice model, {base.path}; leave it out")
    for name in sorted(settings.IMAGE_SETTINGS & values.keys()):
        raise RunError(f"--set {name}: does not apply to a head, which reads features, not images; leave it out")
    return settings.from_mapping(settings.to_mapping(base.config) | DEFAULTS | dict(values))


def resume(
    path: Path, cache_path: str | Path | None, values: Mapping[str, Any], local_copy: Path | None = None
) -> tuple[Run, Run, Cache]:
    """Open a head's run to resume it; returns the same as `begin`.

    Raises:
        RunError: if it is not a head's run, a setting differs, or the slice model is missing or has changed.
    """
    run = open_run(path)
    if not run.has_head:
        raise RunError(f"{path}: is not a head over series; to continue: train run --resume {path}")
    wanted = settings.from_mapping(settings.to_mapping(run.config) | dict(values))
    if changes := settings.differences(run.config, wanted):
        raise RunError(
            f"{path}: was started with other settings: {'; '.join(changes)}; leave them out, or start a new run"
        )
    base = open_run(Path(run.data.base))
    check(base.weights, "restore it, or train a new run")
    if digest(base.weights) != run.data.base_weights:
        raise RunError(f"{base.path}: its weights have changed since {path} was started; start a new head on it")
    return run, base, _own_cache(base, cache_path, local_copy)


def complete(task: Task, base: Run) -> dict[str, Any]:
    """Train a head to the end, score it on validation and test, and write its report; return what `finish` does."""
    path = task.run.path
    with owned(path, again=f"run: train series --resume {path}") if task.processes.writes else nullcontext():
        fit_head(task, base)
        return finish(task)


def _own_cache(base: Run, cache_path: str | Path | None, local_copy: Path | None) -> Cache:
    """Open the commit that a slice model was trained on, since its features refer to lines of that commit."""
    where = cache_path or base.data.cache
    try:
        return open_cache(where, base.data.commit, local_copy)
    except CacheError as error:
        raise RunError(
            f"{error}; a head is trained on the commit of its slice model, {base.path}: give the cache that has it "
            "with --cache, or train a slice model on the new commit: train run"
        ) from error

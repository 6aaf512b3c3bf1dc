"""Do a whole job with series: features of a run, and a head's run from its folder to its report."""

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
from training.run.config import Runtime, TrainConfig
from training.run.digests import check
from training.run.distributed import Processes
from training.run.job import environment, finish
from training.run.owner import owned
from training.run.runs import Run, check_free, create_run, digest, new_folder, open_run
from training.scores.content import open_own_cache, read_content, write_content
from training.series.features import check_alone, write_features
from training.series.fit import fit_head
from training.series.store import open_store

# How a head is trained unless told otherwise. Features are frozen and series are few, so it is small, held back by
# dropout, and passes are cheap; a batch is 16 series, some 500 slices.
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
# What the slice model decides.
OF_SLICES = frozenset(("model", "weights", "size_px", "context", "context_windows", "split_fractions"))
OF_SLICES |= {"position", "position_features", "fusion_features"}


def features(
    path: Path,
    cache_path: str | Path | None,
    subsets: Sequence[str],
    runtime: Runtime,
    processes: Processes,
    *,
    tta: bool = False,
    local_copy: Path | None = None,
) -> int:
    """Write the features of a run's slices on the commit that it was trained on; returns how many were missing.

    Args:
        subsets: of the run's split; none for every slice of the cache.

    Raises:
        RunError: no weights, a store of other weights or of another commit, or another process is at the run's folder.
        ConfigError: several processes.
    """
    run = open_run(path)
    if run.has_head:
        raise RunError(f"{path}: is a head over series; features are those of its slice model: {run.data.base}")
    cache = open_own_cache(run, cache_path, local_copy)
    lines = np.flatnonzero(np.isin(run.subsets(cache), subsets)) if subsets else np.arange(cache.num_slices)
    check_alone(processes)
    with owned(run.path, "is writing its features"):
        return write_features(run, cache, lines, runtime, processes, tta=tta)


def begin(
    path: Path,
    base_path: Path,
    cache_path: str | Path | None,
    values: Mapping[str, Any],
    processes: Processes,
    *,
    local_copy: Path | None = None,
) -> tuple[Run, Run, Cache]:
    """Make the folder of a new head's run, with the slice model's weights and split in it.

    Args:
        base_path: the slice model's run.
        values: settings other than DEFAULTS; what the slice model decides is not among them.

    Returns:
        the run, the slice model's run, and the cache.

    Raises:
        TrainingError: the folder is not free, or the slice model has no features of its own weights and commit.
    """
    check_alone(processes)
    check_free(path)
    base = open_run(base_path)
    if base.has_head:
        raise RunError(f"{base_path}: is itself a head over series; give the slice model's run, {base.data.base}")
    config = head_config(base, values)
    choose_loss(config)
    cache = _own_cache(base, cache_path, local_copy)
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
        create_run(path, config, cache, subsets, mean_std, environment=about, linked=linked, base=known)
    return open_run(path), base, cache


def head_config(base: Run, values: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a head: those of its slice model, DEFAULTS, and what is given.

    Raises:
        ConfigError: an unknown setting. RunError: one that the slice model decides, or that is for images.
    """
    given = settings.from_mapping(settings.to_mapping(base.config) | dict(values))
    for name in sorted(OF_SLICES & values.keys()):
        if getattr(given, name) != getattr(base.config, name):
            raise RunError(f"--set {name}: is taken from the slice model, {base.path}; leave it out")
    for name in sorted(settings.OF_IMAGES & values.keys()):
        raise RunError(f"--set {name}: does not apply to a head, which reads features, not images; leave it out")
    return settings.from_mapping(settings.to_mapping(base.config) | DEFAULTS | dict(values))


def resume(
    path: Path, cache_path: str | Path | None, values: Mapping[str, Any], local_copy: Path | None = None
) -> tuple[Run, Run, Cache]:
    """Open a head's run to go on with; as `begin` returns it.

    Raises:
        RunError: it is no head's run, a setting differs, or the slice model is gone or was trained on.
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


def complete(run: Run, base: Run, cache: Cache, runtime: Runtime, processes: Processes) -> dict[str, Any]:
    """Train a head to its end, score it on validation and test, and write its report; returns the scores on test."""
    with owned(run.path, again=f"run: train series --resume {run.path}") if processes.writes else nullcontext():
        fit_head(run, base, cache, runtime, processes)
        return finish(run, cache, runtime, processes)


def _own_cache(base: Run, cache_path: str | Path | None, local_copy: Path | None) -> Cache:
    """Open the commit that a slice model was trained on: features are of its lines."""
    where = cache_path or base.data.cache
    try:
        return open_cache(where, base.data.commit, local_copy)
    except CacheError as error:
        raise RunError(
            f"{error}; a head is trained on the commit of its slice model, {base.path}: give the cache that has it "
            "with --cache, or train a slice model on the new commit: train run"
        ) from error

"""The Python entry points: open a cache, train on it, and load the network of a run."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from training.data import cache
from training.data.linked import link
from training.data.split import split_patients
from training.errors import RunError
from training.model.network import load_run_weights
from training.model.program import Exported
from training.run import config, job
from training.run.config import Runtime
from training.run.distributed import join_processes
from training.run.functions import name_of
from training.run.loggers import check_loggers
from training.run.runs import open_run
from training.run.task import Task

FUNCTIONS = ("model", "augment", "loss")


@dataclass(frozen=True)
class Cache(cache.Cache):
    """One commit of a cache, opened by `training.open_cache`."""

    def split(self, seed: int) -> np.ndarray:
        """Return the subset of each line of the table, (N,) str: train, validation or test, split as in `train run`.

        All slices of a patient, and of patients who share slices, are in the same subset. The proportion of patients
        in each subset is set in the catalog that the cache was built with.

        Raises:
            ConfigError: if there are fewer patients than subsets.
        """
        return split_patients(self.table, self.classes, self.splits, seed=seed, units=link(self, self.sizes[0]).units)


def open_cache(path: str | Path, commit: str | None = None, local_copy: Path | None = None) -> Cache:
    """Open the current commit of a cache, or the one with the given id; later builds do not affect an open cache.

    Args:
        path: the cache's folder, or its address, such as s3://bucket/cache.zarr.
        commit: the commit's id, 16 hex digits; None for the current commit.
        local_copy: a folder on a local disk in which to keep copies of the files that are read; required for an
            address.

    Raises:
        CacheError: if there is no cache, it is unfinished or damaged, its format or version is not supported, or it
            has no such commit.
    """
    opened = cache.open_cache(path, commit, local_copy)
    return Cache(**{item.name: getattr(opened, item.name) for item in fields(opened)})


def load_model(run: str | Path) -> Exported:
    """Load the best network of a run: (B, C, S, S) uint8 and (B,) float32 positions in [0, 1] -> (B, K) probabilities.

    C is the number of windows, or of channels in the whole stack for a run with context. Normalisation and the sigmoid
    are included. The network is on the CPU, in evaluation mode. Its classes, windows and image size are in the run's
    settings.json.

    Raises:
        RunError: if there is no run, it has no weights yet, or it is a head over series.
    """
    opened = open_run(Path(run))
    if opened.config.head != "none":
        raise RunError(
            f"{run}: a head over series cannot classify single slices; load its slice model's run, or run: train "
            "predict"
        )
    net = load_run_weights(opened.config, len(opened.data.classes), opened.weights, opened.channels)
    return Exported(net, *opened.mean_std).eval()


def fit(
    cache: str | Path,
    out: str | Path,
    *,
    runtime: Runtime = Runtime(),  # noqa: B008  # frozen
    local_copy: Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train, evaluate and report exactly as `train run` does; call it again to resume a run that was stopped.

    Args:
        cache: a folder or an address, as for `open_cache`.
        out: the run's folder: new or empty, or that of the same run to resume it.
        runtime: options that do not affect the outcome: device, threads, checkpoints.
        local_copy: as for `open_cache`.
        settings: fields of `training.TrainConfig`, such as epochs=2 or size_px=224. `model`, `augment` and `loss` may
            be functions from your own module; docs/library.md describes their arguments and results.

    Returns:
        the scores on the test set; on the validation set if the run has no test set; empty if it has neither.

    Raises:
        TrainingError: if the settings, the cache or the folder cannot be used; the message says what to do.
    """
    check_loggers(runtime.loggers)
    path, wanted = Path(out), dict(settings)
    wanted |= {name: name_of(wanted[name], name) for name in FUNCTIONS if name in wanted}
    if "weights" in wanted:
        wanted["weights"] = job.absolute_weights(str(wanted["weights"]))
    with join_processes(runtime.device) as processes:
        if (path / "settings.json").exists():
            run, opened = job.resume(path, cache, wanted, local_copy)
        else:
            run, opened = job.begin(path, cache, config.new_settings(wanted), processes, local_copy)
        return job.complete(Task(run, opened, runtime, processes))

"""The entry points for a program: a cache that is queried, and the network of a run."""

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

FUNCTIONS = ("model", "augment", "loss")


@dataclass(frozen=True)
class Cache(cache.Cache):
    """One commit of a cache, opened by `training.open_cache`."""

    def split(self, seed: int) -> np.ndarray:
        """Return the subset of each line of the table, (N,) str: train, validation or test, as `train run` has it.

        All slices of a patient, and of patients who share slices, are in one subset. The shares of the patients are
        those in the catalog of the build.

        Raises:
            ConfigError: there are fewer patients than subsets.
        """
        return split_patients(self.table, self.classes, self.splits, seed=seed, units=link(self, self.sizes[0]).units)


def open_cache(path: str | Path, commit: str | None = None, local_copy: Path | None = None) -> Cache:
    """Open the current commit of a cache, or the one with the given id; later builds do not change what is open.

    Args:
        path: its folder, or its address, s3://bucket/cache.zarr say.
        local_copy: a folder on local disk where what is read of the cache is copied to; an address needs one.

    Raises:
        CacheError: no cache, an unfinished or damaged one, another format or version, or no such commit.
    """
    opened = cache.open_cache(path, commit, local_copy)
    return Cache(**{item.name: getattr(opened, item.name) for item in fields(opened)})


def load_model(run: str | Path) -> Exported:
    """Load the best network of a run: (B, C, S, S) uint8 and (B,) float32 positions in [0, 1] -> (B, K) probabilities.

    C is the windows, or those of the whole stack for a run with context. Normalisation and sigmoid are part of it; it
    is in evaluation mode and on the CPU. Its classes, windows and size are in the run's settings.json.

    Raises:
        RunError: no run there, it has no weights yet, or it is a head over series.
    """
    opened = open_run(Path(run))
    if opened.config.head != "none":
        raise RunError(
            f"{run}: a head over series does not judge single slices; load its slice model's run, or: train predict"
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
    """Train as `train run` does, to the report, and return the scores on test. Called again, it goes on.

    Args:
        cache: a folder or an address, as `open_cache` takes it.
        out: the run's folder: free, or that of the same run to go on with.
        runtime: what a run may change without another outcome: device, threads, checkpoints.
        settings: of `training.TrainConfig`: epochs=2, size_px=224. `model`, `augment` and `loss` may be functions of a
            module of your own; docs/library.md says what each is given and gives.

    Raises:
        TrainingError: the settings, the cache or the folder do not fit; the message says what to do.
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
        return job.complete(run, opened, runtime, processes)

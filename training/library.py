"""This file is what a program of one's own begins with: a cache that is asked, and the network of a run."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from training.data import cache
from training.data.split import split_patients
from training.model.export import Exported
from training.model.network import load_run_weights
from training.run.runs import open_run


@dataclass(frozen=True)
class Cache(cache.Cache):
    """One commit of a cache, opened by `training.open_cache`."""

    def split(self, seed: int) -> np.ndarray:
        """Return the side of each line of the table, (N,) str: train, validation or test, as `train run` has it.

        All slices of a patient are on one side. The shares of the patients are those in the catalog of the build.

        Raises:
            ConfigError: there are fewer patients than sides.
        """
        return split_patients(self.table, self.classes, self.splits, seed=seed)


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
        RunError: no run there, or it has no weights yet.
    """
    opened = open_run(Path(run))
    net = load_run_weights(opened.config, len(opened.data.classes), opened.weights, opened.channels)
    return Exported(net, *opened.mean_std).eval()

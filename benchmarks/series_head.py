"""Measure how long a head over series trains: 20 epochs on 5,000 slices of 2,048 features.

    python -m benchmarks.series_head [--series 147] [--slices 34] [--epochs 20]

The features are random numbers in the store of a ResNet-50 run, as `train features` would write it; the time of a step
does not depend on their values. The time includes reading the store, validation after each epoch, checkpoints and the
choice of the shares, but not imports, nor the scores and the report at the end.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.frame import machine, timed
from testkit.fake_cache import write_cache
from training.model.network import build_model
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.job import begin
from training.run.runs import Run
from training.run.task import Task
from training.series import job as series
from training.series.features import write_features
from training.series.fit import fit_head
from training.series.store import open_store

HERE = Processes(0, 1, torch.device("cpu"))
RUNTIME = Runtime(device="cpu", input_threads=0)


def slice_model(folder: Path, patients: int, slices: int) -> Run:
    """Create a ResNet-50 run with random weights, and a store of random features."""
    fake = write_cache(folder / "cache.zarr", patients=patients, slices=slices)
    run, cache = begin(folder / "base", fake.path, TrainConfig(weights="none", size_px=32), HERE)
    save_file(build_model(run.config, len(cache.classes)).state_dict(), run.weights)
    write_features(Task(run, cache, RUNTIME, HERE), np.arange(0), tta=False)
    store, rng = open_store(run, cache, tta=False), np.random.default_rng(0)
    for first, end in store.blocks():
        features, logits = (rng.normal(0, 1, (end - first, width)) for width in store.shape[1:])
        store.write(first, end, np.arange(end - first), (features, logits))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=147)
    parser.add_argument("--slices", type=int, default=34)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        base = slice_model(Path(folder), options.series, options.slices)
        for head in ("gru", "transformer"):
            values = {"head": head, "epochs": options.epochs, "patience_epochs": options.epochs}
            run, _, cache = series.begin(Path(folder, head), *series.open_base(base.path), values, HERE)
            took = timed(functools.partial(fit_head, Task(run, cache, RUNTIME, HERE), base))
            taken = f"{took.cpu:.1f} s of CPU time, {took.wall:.1f} s of wall time"
            print(f"{head}: {options.series * options.slices:,} slices, {options.epochs} epochs: {taken}", flush=True)


if __name__ == "__main__":
    main()

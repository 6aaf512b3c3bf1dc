"""Prove on planted truth that neighbours and a head over the series help where they can, and only there.

    python benchmarks/context.py [--patients 160] [--seeds 2] [--epochs 8] [--folder DIR]

`pipeline phantom --faint-edges` writes heads in which a bleed can barely be seen in its first and its last slice: only
the slices beside them tell. With `--shuffled` besides, the same slices lie in random order within their series: now no
place tells of another. Every patient bleeds, and what is asked is `any`: else the rest of a series would tell that
there is blood in it, and of which kind, in whatever order it lies.

The slice model, the one with a slice on each side, and the heads over the series are compared on held-out patients by
log loss, as the runs score it and once more with slope and offset of each run's logits fitted on validation: a second
training may mend a model that is too sure, which would be no context. Each seed holds out other patients; differences
are pooled over the seeds and drawn by patient. Stopped anywhere, the same command with the same DIR goes on.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from training.run import job
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.loop import fit
from training.run.presets import DEMO
from training.scores.bootstrap import draw_patients, interval
from training.scores.metrics import log_losses
from training.scores.operating import choose_operating
from training.scores.predictions import read_predictions
from training.series import job as series
from training.series.fit import fit_head
from training.series.mix import read_mix

SIZE = 64
CATALOG = f"""\
windows:
  - {{name: brain, level_hu: 40, width_hu: 80}}
  - {{name: subdural, level_hu: 50, width_hu: 130}}
  - {{name: bone, level_hu: 600, width_hu: 2800}}
sizes: [{SIZE}]
splits: {{train: 0.5, validation: 0.15, test: 0.35}}
layout: {{rows_per_shard: 256, compression: lz4, compression_level: 5}}
datasets:
  faint:
    description: Bleeds that fade at their ends
    type: dicom
    image_id: sop_instance_uid
    patient_ids: keep
    missing_rescale: reject
    repair: none
    labels: {{type: rsna_long}}
    classes: [{{name: any, weight: 1}}]
    metadata: {{source: pipeline phantom, licence: none needed}}
"""
ORDERS = {"in order": ["--faint-edges"], "in random order": ["--faint-edges", "--shuffled"]}
IMAGES = {"slice": 0, "context": 1}  # slices on each side
HEADS = ("gru", "transformer")
HERE = Processes(0, 1, torch.device("cpu"))
RUNTIME = Runtime(device="cpu", input_threads=0)


def prepare(folder: Path, patients: int, options: list[str]) -> Path:
    """Write phantom and cache where they are not there yet; the DICOM files go again."""
    cache = folder / "cache.zarr"
    if not (cache / "zarr.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "catalog.yaml").write_text(CATALOG)
        _pipeline("phantom", "--out", folder, "--patients", patients, "--seed", 1, "--bleeding", 10, *options)
        labels = pd.read_csv(folder / "labels.csv")
        labels[labels["ID"].str.endswith("_any")].to_csv(folder / "any.csv", index=False)
        what = ("--catalog", folder / "catalog.yaml", "--dataset", "faint", "--labels", folder / "any.csv")
        _pipeline("build", "--src", folder / "dicoms", "--out", cache, *what)
        shutil.rmtree(folder / "dicoms")
    return cache


def _pipeline(*arguments: object) -> None:
    subprocess.run(
        [Path(sys.executable).with_name("pipeline"), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def train(folder: Path, cache: Path, seed: int, epochs: int) -> dict[str, Path]:
    """Train the slice model, the one with context, and both heads, and predict validation and test with each."""
    runs = {name: folder / f"{name}-{seed}" for name in (*IMAGES, *HEADS)}
    for name, context in IMAGES.items():
        values = DEMO | {"size_px": SIZE, "epochs": epochs, "patience_epochs": epochs, "context": context, "seed": seed}
        values["split_fractions"] = (0.5, 0.15, 0.35)
        new = not (runs[name] / "settings.json").exists()
        run, opened = (
            job.begin(runs[name], cache, TrainConfig(**values), HERE) if new else job.resume(runs[name], None, {})
        )
        fit(run, opened, RUNTIME, HERE)
        _predict(run, opened)
    series.features(runs["slice"], None, (), RUNTIME, HERE)
    for name in HEADS:
        new = not (runs[name] / "settings.json").exists()
        made = (
            series.begin(runs[name], runs["slice"], None, {"head": name}, HERE)
            if new
            else series.resume(runs[name], None, {})
        )
        fit_head(*made, RUNTIME, HERE)
        _predict(made[0], made[2])
    return runs


def _predict(run: job.Run, cache: job.Cache) -> None:
    for side in ("validation", "test"):
        if not (run.path / f"scores_{side}.json").exists():
            job.evaluate(run, cache, side, RUNTIME, HERE, tta=False)


@dataclass(frozen=True)
class Losses:
    """Log losses on test slices, (n,) float64, of the slice model, a run, and of both with recalibrated logits."""

    patients: np.ndarray
    alone: np.ndarray
    run: np.ndarray
    alone_again: np.ndarray
    run_again: np.ndarray


def losses(alone: Path, run: Path) -> Losses:
    """Read how wrong two runs of one seed were."""
    (known, a, a_again), (other, b, b_again) = (_losses(path) for path in (alone, run))
    assert known.equals(other)
    return Losses(known.to_numpy(str), a, b, a_again, b_again)


def _losses(run: Path) -> tuple[pd.Series, np.ndarray, np.ndarray]:
    validation, test = (read_predictions(run / f"predictions_{side}.csv") for side in ("validation", "test"))
    again = choose_operating(validation.labels, validation.probabilities, test.classes).calibrate(test.probabilities)
    each = [log_losses(test.labels, probabilities)[:, 0] for probabilities in (test.probabilities, again)]
    return test.slices["patient_id"], each[0], each[1]


def difference(a: np.ndarray, b: np.ndarray, patients: np.ndarray) -> tuple[float, list[float]]:
    """Return the mean of b - a, and its 95 % interval over patients."""
    names, owner = np.unique(patients, return_inverse=True)
    count, total = np.bincount(owner), np.bincount(owner, b - a)
    draws = np.concatenate([(drawn @ total) / (drawn @ count) for drawn in draw_patients(len(names), 2000, 0)])
    return float((b - a).mean()), interval(draws) or [np.nan, np.nan]


def show(order: str, name: str, pairs: list[tuple[Path, Path]]) -> None:
    """Print a line: what a kind of run changes, over all seeds."""
    parts = [losses(*pair) for pair in pairs]
    of = Losses(*(np.concatenate([vars(part)[field] for part in parts]) for field in vars(parts[0])))
    cells = []
    for a, b in ((of.alone, of.run), (of.alone_again, of.run_again)):
        mean, (low, high) = difference(a, b, of.patients)
        cells.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    shares = ""
    if name in HEADS:
        shares = ", ".join(f"{read_mix(job.open_run(run))[0]:.2f}" for _, run in pairs)
    print(
        f"| {order} | {name} | {of.alone.mean():.4f} | {of.run.mean():.4f} | {' | '.join(cells)} | {shares} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to write, and to go on; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = options.folder or Path(temporary)
        lines = []
        for order, flags in ORDERS.items():
            began, where = time.process_time(), folder / order.replace(" ", "-")
            cache = prepare(where, options.patients, flags)
            runs = [train(where, cache, seed, options.epochs) for seed in range(options.seeds)]
            lines += [(order, name, [(of["slice"], of[name]) for of in runs]) for name in ("context", *HEADS)]
            print(f"{order}: {time.process_time() - began:.0f} s of CPU time to train", flush=True)
        print("| slices | model | slice model | this | this - it, 95 % interval | recalibrated | share of the head |")
        for line in lines:
            show(*line)


if __name__ == "__main__":
    main()

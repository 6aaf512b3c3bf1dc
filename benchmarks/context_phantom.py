"""Try neighbours and heads over the series on the phantom, where only they can tell, and where they cannot.

    python benchmarks/context_phantom.py [--patients 80] [--seeds 2] [--epochs 8] [--folder DIR]

`pipeline phantom --faint-edges` writes heads in which a bleed can barely be seen in its first and its last slice: only
the slices beside them tell. With `--shuffled` besides, the same slices lie in random order within their series: now no
place tells of another. Every patient bleeds, and what is asked is `any`: else the rest of a series would tell that
there is blood in it, and of which kind, in whatever order it lies.

A network learns what blood looks like, from nothing; the slice model and the one with a slice on each side then begin
with its weights and learn on, alike. They and the heads over the series are compared on held-out patients by log loss,
as the runs score it and once more with slope and offset of each run's logits fitted on validation: a second training
may mend a model that is too sure, which would be no context. Each seed holds out other patients; differences are pooled
over the seeds and drawn by patient. Stopped anywhere, the same command with the same DIR goes on.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import zarr

from phantom.planted import make_planted, shuffle
from phantom.study import Study
from testkit.fake_cache import WINDOWS, commit_table, write_arrays
from training.data.cache import Cache
from training.run import job
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.loop import fit
from training.run.presets import DEMO
from training.run.runs import Run, open_run
from training.scores.bootstrap import draw_patients, interval
from training.scores.metrics import log_losses
from training.scores.operating import choose_operating
from training.scores.predictions import read_predictions
from training.series import job as series
from training.series.fit import fit_head
from training.series.mix import read_mix

SIZE = 64
SEED, ROWS = 1, 256
ORDERS = ("in order", "in random order")
IMAGES = {"slice": 0, "context": 1}  # slices on each side
HEADS = ("gru", "transformer")
SHARES = (0.5, 0.15, 0.35)
# From weights that know blood already; averaged, for a model that is too sure would be mended by any second training.
SECOND = {"learning_rate": 1e-3, "warmup_fraction": 0.1, "ema_decay": 0.95}
HERE = Processes(0, 1, torch.device("cpu"))
RUNTIME = Runtime(device="cpu", input_threads=0)


def prepare(folder: Path, patients: int) -> None:
    """Write the caches of the same slices, in order and in random order, where they are not there yet."""
    if all((_cache(folder, order) / "zarr.json").exists() for order in ORDERS):
        return
    images: list[np.ndarray] = []
    lines: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    for patient in range(patients):
        study = make_planted(SEED, patient, edges=True, bleeding=10)
        lines["in order"] += _lines(study, len(images))
        lines["in random order"] += _lines(shuffle(study, np.random.default_rng((SEED, patient))), len(images))
        images += list(_images(study))
    stored = np.zeros((-(-len(images) // ROWS) * ROWS, len(WINDOWS), SIZE, SIZE), np.uint8)
    stored[: len(images)] = images
    for order in ORDERS:
        shutil.rmtree(_cache(folder, order), ignore_errors=True)
        zarr.create_group(_cache(folder, order))
        write_arrays(_cache(folder, order), SIZE, stored, ROWS, "lz4")
        table = pd.DataFrame(lines[order]).sort_values(["patient_id", "z_mm"], ignore_index=True)
        commit_table(_cache(folder, order), table, ("any",), WINDOWS, (SIZE,), ROWS)


def _cache(folder: Path, order: str) -> Path:
    return folder / order.replace(" ", "-") / "cache.zarr"


def _lines(study: Study, first_row: int) -> list[dict[str, Any]]:
    """The slices of a study as a cache's table has them."""
    z_mm = study.geometry.positions[:, 2]
    z_norm = (z_mm - z_mm.min()) / np.ptp(z_mm)
    return [
        {
            "row": first_row + k,
            "image_id": uid,
            "sop_instance_uid": uid,
            "patient_id": study.patient_id,
            "study_instance_uid": study.study_instance_uid,
            "series_instance_uid": study.series_instance_uid,
            "frame": 0,
            "z_mm": z_mm[k],
            "z_norm": z_norm[k],
            "any": int(study.labels[k, -1]),
        }
        for k, uid in enumerate(study.uids)
    ]


def _images(study: Study) -> np.ndarray:
    """(N, C, SIZE, SIZE) uint8: the windows of each slice, reduced by the mean of squares of pixels."""
    hu = study.hu.astype(np.float32)
    side = hu.shape[1] // SIZE
    shown = [np.clip((hu - level) / width + 0.5, 0, 1) for _, level, width in WINDOWS]
    means = [of.reshape(len(of), SIZE, side, SIZE, side).mean((2, 4)) for of in shown]
    return np.rint(255 * np.stack(means, axis=1)).astype(np.uint8)


def train(folder: Path, start: Path, cache: Path, seed: int, epochs: int) -> dict[str, Path]:
    """Train the slice model and the one with context from the same weights, and both heads on the slice model.

    Validation and test are predicted with each.

    Args:
        start: the run whose weights both begin with; see `pretrain`.
    """
    runs = {name: folder / f"{name}-{seed}" for name in (*IMAGES, *HEADS)}
    for name, context in IMAGES.items():
        config = settings(epochs, seed, context=context, weights=str(start / "weights.safetensors"), **SECOND)
        _predict(*train_images(runs[name], cache, config))
        assert (runs[name] / "split.csv").read_bytes() == (start / "split.csv").read_bytes()
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


def settings(epochs: int, seed: int, **changes: Any) -> TrainConfig:
    """The demo's settings, at another size and with every epoch."""
    own = {"size_px": SIZE, "epochs": epochs, "patience_epochs": epochs, "seed": seed, "split_fractions": SHARES}
    return TrainConfig(**(DEMO | own | changes))


def train_images(path: Path, cache: Path, config: TrainConfig) -> tuple[Run, Cache]:
    """Train a run on images to its end, or go on with it."""
    begun = (path / "settings.json").exists()
    run, opened = job.resume(path, None, {}) if begun else job.begin(path, cache, config, HERE)
    fit(run, opened, RUNTIME, HERE)
    return run, opened


def _predict(run: Run, cache: Cache) -> None:
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
        shares = ", ".join(f"{read_mix(open_run(run))[0]:.2f}" for _, run in pairs)
    print(
        f"| {order} | {name} | {of.alone.mean():.4f} | {of.run.mean():.4f} | {' | '.join(cells)} | {shares} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to write, and to go on; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, options.patients)
        starts = [folder / f"start-{seed}" for seed in range(options.seeds)]
        for seed, start in enumerate(starts):
            train_images(start, _cache(folder, ORDERS[0]), settings(options.epochs, seed))
        lines = []
        for order in ORDERS:
            began, cache = time.process_time(), _cache(folder, order)
            runs = [train(cache.parent, start, cache, seed, options.epochs // 2) for seed, start in enumerate(starts)]
            lines += [(order, name, [(of["slice"], of[name]) for of in runs]) for name in ("context", *HEADS)]
            print(f"{order}: {time.process_time() - began:.0f} s of CPU time to train", flush=True)
        print("| slices | model | slice model | this | this - it, 95 % interval | recalibrated | share of the head |")
        for line in lines:
            show(*line)


if __name__ == "__main__":
    main()

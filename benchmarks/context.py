"""Measure neighbours and heads over series on phantoms in which only they can help, and in which they cannot.

    python benchmarks/context.py [--patients 160] [--epochs 18] [--second 8] [--seed 2] [--folder DIR]

`pipeline phantom --faint-edges` writes heads in which a bleed is barely visible in its first and last slice, so only
the neighbouring slices show it. With `--shuffled`, the same slices are in random order within their series, so no slice
tells anything about another. All patients have an intraparenchymal bleed and no other; otherwise the rest of a series
would reveal that there is blood, and of which kind, in any order. A small network learns to see such bleeds in minutes.

A network is trained from scratch; the slice model and the one with a neighbour on each side then start with its weights
and continue in the same way. They and the heads over series are compared on held-out patients by log loss, as scored
by the runs and after calibration of each run's logits on validation, because a second training may only correct
overconfidence, which is not context. A second table shows on which slices they differ. Settings were chosen on
validation with other patients (--seed 1). It takes eight minutes of CPU time. If it is stopped, the same command with
the same DIR continues.
"""

import argparse
import shutil
import tempfile
import time
from itertools import count, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from phantom.planted import FAINT, make_planted, shuffle, visibility
from phantom.study import Study, draw_kinds
from testkit.fake_cache import WINDOWS
from testkit.series_gains import HEADS, IMAGES, print_gains, print_head, score, train_heads, train_images, write_slices
from training.run.config import TrainConfig
from training.run.presets import DEMO
from training.scores.predictions import read_predictions

SIZE = 64
BLEEDING = 10  # of ten patients
ORDERS = ("in order", "in random order")
SHARES = (0.45, 0.15, 0.4)
# Starts from trained weights; averaged, because any further model would improve on an overconfident one.
SECOND = {"learning_rate": 1e-3, "warmup_fraction": 0.1, "ema_decay": 0.95}
# Those of the demo; batches of 16 series would give only six steps per epoch.
HEAD_SETTINGS = {"epochs": 15, "batch_size": 4, "learning_rate": 2e-3}


def prepare(folder: Path, patients: int, seed: int) -> None:
    """Write caches of the same slices in order and in random order, unless they exist.

    FOLDER/faint.txt lists the slices that hardly show their bleed.
    """
    if all(_cache(folder, order).exists() for order in ORDERS):
        return
    images: list[np.ndarray] = []
    lines: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    faint: list[str] = []
    for patient in islice((patient for patient in count() if _bleeds_into_the_brain(seed, patient)), patients):
        study = make_planted(seed, patient, edges=True, bleeding=BLEEDING)
        faint += list(np.array(study.uids)[visibility(study.labels) == np.float32(FAINT)])
        lines["in order"] += _lines(study, len(images))
        lines["in random order"] += _lines(shuffle(study, np.random.default_rng((seed, patient))), len(images))
        images += list(_images(study))
    (folder / "faint.txt").write_text("\n".join(faint))
    for order in ORDERS:
        _cache(folder, order).parent.mkdir(exist_ok=True)
        shutil.rmtree(_cache(folder, order), ignore_errors=True)
        write_slices(_cache(folder, order), np.stack(images), pd.DataFrame(lines[order]), ("any",))


def _bleeds_into_the_brain(seed: int, patient: int) -> bool:
    """Return whether a patient has only an intraparenchymal bleed, drawn as the first draw of `make_study`."""
    return draw_kinds(seed, patient, np.random.default_rng((seed, patient, 4, 0)), BLEEDING) == ["intraparenchymal"]


def _cache(folder: Path, order: str) -> Path:
    return folder / order.replace(" ", "-") / "cache.zarr"


def _lines(study: Study, first_row: int) -> list[dict[str, Any]]:
    """Return the lines of a cache's table for the slices of a study."""
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
    """Return the windows of each slice, reduced by averaging blocks of pixels: (N, C, SIZE, SIZE) uint8."""
    hu = study.hu.astype(np.float32)
    side = hu.shape[1] // SIZE
    shown = [np.clip((hu - level) / width + 0.5, 0, 1) for _, level, width in WINDOWS]
    means = [of.reshape(len(of), SIZE, side, SIZE, side).mean((2, 4)) for of in shown]
    return np.rint(255 * np.stack(means, axis=1)).astype(np.uint8)


def measure(cache: Path, start: Path, epochs: int) -> None:
    """Train the slice model and the one with context from the same weights, and both heads on the slice model.

    Args:
        start: the run whose weights both start with.
    """
    folder = cache.parent
    for name, context in IMAGES.items():
        config = settings(epochs, context=context, weights=str(start / "weights.safetensors"), **SECOND)
        score(*train_images(folder / name, cache, config))
        assert (folder / name / "split.csv").read_bytes() == (start / "split.csv").read_bytes()
    train_heads(folder, folder / "slice", HEAD_SETTINGS)


def settings(epochs: int, **changes: Any) -> TrainConfig:
    """Return the demo's settings with another size and without early stopping."""
    own = {"size_px": SIZE, "epochs": epochs, "patience_epochs": epochs, "split_fractions": SHARES}
    return TrainConfig(**(DEMO | own | changes))


def print_kinds(folder: Path) -> None:
    """Print the log loss on the held-out slices that hardly show their bleed, and on all others."""
    faint = (folder / "faint.txt").read_text().split()
    print("\n| slices | model | faint slices | others |\n|---|---|---|---|")
    for order, name in product(ORDERS, (*IMAGES, *HEADS)):
        read = read_predictions(_cache(folder, order).with_name(name) / "predictions_test.csv")
        losses = -np.log(np.where(read.labels == 1, read.probabilities, 1 - read.probabilities).clip(1e-15))[:, 0]
        faint_ones = read.slices["image_id"].isin(faint).to_numpy()
        means = (f"{losses[of].mean():.4f} ({of.sum()})" for of in (faint_ones, ~faint_ones))
        print(f"| {' | '.join((order, name, *means))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=18, help="of the network that is trained from scratch")
    parser.add_argument("--second", type=int, default=8, help="further epochs of the slice model and of context")
    parser.add_argument("--seed", type=int, default=2, help="which patients")
    parser.add_argument(
        "--folder", type=Path, help="folder to write to, and to resume from; default: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = options.folder or Path(temporary), time.process_time()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, options.patients, options.seed)
        start = folder / "start"
        train_images(start, _cache(folder, ORDERS[0]), settings(options.epochs))
        for order in ORDERS:
            measure(_cache(folder, order), start, options.second)
        print_head()
        for order in ORDERS:
            print_gains(order, _cache(folder, order).parent)
        print_kinds(folder)
        print(f"\n{time.process_time() - began:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()

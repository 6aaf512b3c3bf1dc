"""Check on planted squares that neighbours and a head over series help where they can, and only there.

    python benchmarks/context_squares.py [--patients 160] [--epochs 10] [--folder DIR]

Each series has one bleed, visible as a bright square except in its first and last slice, which show almost nothing but
are labelled, so only the neighbouring slices show it. All series have the same number of such slices, and the squares
are at independent positions. The same slices are then put in random order within their series, with their labels, so
that no slice tells anything about another. `benchmarks/context.py` does the same with heads, which a network takes far
longer to learn from scratch. If it is stopped, the same command with the same DIR continues.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testkit.series_gains import IMAGES, print_gains, print_head, score, train_heads, train_images, write_slices
from training.run.config import TrainConfig

SIZE, SLICES, BLEED = 32, 16, 5
CLASSES = ("any",)
ORDERS = ("in order", "in random order")
FAINT, BRIGHT = 3, 120  # grey levels above a background with a range of 50
SETTINGS: dict[str, Any] = {
    "model": "shufflenet_v2_x0_5",
    "weights": "none",
    "size_px": SIZE,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "ema_decay": 0.98,  # any further model would improve on an overconfident slice model, with or without context
    "mixup_alpha": 0.0,
    "dropout": 0.1,
    "fusion_features": 32,
    "position_features": 8,
    "rotation_degrees": 0.0,
    "split_fractions": (0.5, 0.15, 0.35),
}


def write_planted(path: Path, patients: int, *, shuffled: bool) -> None:
    """Write a cache with one series per patient; with `shuffled`, the same slices in random order."""
    rng = np.random.default_rng(0)
    images = rng.integers(40, 90, (patients * SLICES, 3, SIZE, SIZE), np.uint8)
    lines = []
    for patient in range(patients):
        first = int(rng.integers(1, SLICES - BLEED))
        order = rng.permutation(SLICES)
        for number in range(SLICES):
            row = patient * SLICES + number
            positive = first <= number < first + BLEED
            if positive:
                top, left = rng.integers(2, SIZE - 12, 2)
                edge = number in (first, first + BLEED - 1)
                images[row, :, top : top + 10, left : left + 10] += FAINT if edge else BRIGHT
            lines.append(_line(patient, row, int(order[number]) if shuffled else number, int(positive)))
    write_slices(path, images, pd.DataFrame(lines), CLASSES)


def _line(patient: int, row: int, place: int, label: int) -> dict[str, Any]:
    name = f"S{row:06d}"
    return {
        "row": row,
        "image_id": name,
        "sop_instance_uid": name,
        "patient_id": f"P{patient:05d}",
        "study_instance_uid": f"T{patient:05d}",
        "series_instance_uid": f"U{patient:05d}",
        "frame": 0,
        "z_mm": 5.0 * place,
        "z_norm": place / (SLICES - 1),
        "any": label,
    }


def measure(cache: Path, folder: Path, epochs: int) -> None:
    """Train and score the slice model, the one with context, and both heads."""
    for name, context in IMAGES.items():
        config = TrainConfig(**SETTINGS, epochs=epochs, patience_epochs=epochs, context=context)
        score(*train_images(folder / name, cache, config))
    train_heads(folder, folder / "slice", {"head_features": 64})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--folder", type=Path, help="folder to write to, and to resume from; default: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        began = time.process_time()
        folders = {name: (options.folder or Path(temporary)) / name.replace(" ", "-") for name in ORDERS}
        for name, where in folders.items():
            if not (where / "cache.zarr").exists():
                write_planted(where / "cache.zarr", options.patients, shuffled=name != "in order")
            measure(where / "cache.zarr", where, options.epochs)
        print_head()
        for name, where in folders.items():
            print_gains(name, where)
        print(f"{time.process_time() - began:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()

"""Try on planted truth whether neighbours and a head over the series help where they can, and only there.

    python benchmarks/context.py [--patients 160] [--epochs 10] [--folder DIR]

Each series has one bleed, visible as a bright square but for its first and its last slice, which show (almost) nothing
and are labelled all the same: only the slices beside them tell. Every series has as many such slices as any other. The
same slices are then put in random order within their series, labels kept: now no slice tells of another. The slice
model, the one with a slice on each side, and the heads over the series are compared on held-out patients by the
weighted log loss, with paired 95 % intervals over patients. `pipeline phantom --faint-edges` and `--shuffled` do the
same to whole heads, which a network takes far longer to learn from nothing.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import zarr

from testkit.fake_cache import WINDOWS, commit_table, write_arrays
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.job import begin, evaluate
from training.run.loop import fit
from training.scores.compare import compare, read_contestants
from training.series import job as series
from training.series.fit import fit_head

SIZE, SLICES, BLEED = 32, 16, 5
CLASSES = ("any",)
FAINT, BRIGHT = 3, 120  # grey levels above a background that spreads over 50
HERE = Processes(0, 1, torch.device("cpu"))
RUNTIME = Runtime(device="cpu", input_threads=0)
SETTINGS: dict[str, Any] = {
    "model": "shufflenet_v2_x0_5",
    "weights": "none",
    "size_px": SIZE,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "ema_decay": 0.98,  # a slice model that is too sure would be mended by any second training, context or not
    "mixup_alpha": 0.0,
    "dropout": 0.1,
    "fusion_features": 32,
    "position_features": 8,
    "rotation_degrees": 0.0,
    "split_fractions": (0.5, 0.15, 0.35),
}


def write_planted(path: Path, patients: int, *, shuffled: bool) -> None:
    """Write a cache of one series a patient; `shuffled` gives the same slices other places in their series."""
    rng = np.random.default_rng(0)
    images = rng.integers(40, 90, (patients * SLICES, 3, SIZE, SIZE), np.uint8)
    lines = []
    for patient in range(patients):
        first = int(rng.integers(1, SLICES - BLEED))
        order = rng.permutation(SLICES)
        top, left = rng.integers(2, SIZE - 12, 2)
        for number in range(SLICES):
            row = patient * SLICES + number
            positive = first <= number < first + BLEED
            if positive:
                edge = number in (first, first + BLEED - 1)
                images[row, :, top : top + 10, left : left + 10] += FAINT if edge else BRIGHT
            lines.append(_line(patient, row, int(order[number]) if shuffled else number, int(positive)))
    table = pd.DataFrame(lines).sort_values(["patient_id", "z_mm"], ignore_index=True)
    zarr.create_group(path)
    rows = -(-len(images) // 256) * 256
    stored = np.zeros((rows, *images.shape[1:]), np.uint8)
    stored[: len(images)] = images
    write_arrays(path, SIZE, stored, 256, "lz4")
    commit_table(path, table, CLASSES, WINDOWS, (SIZE,), 256)


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


def measure(cache: Path, folder: Path, epochs: int) -> pd.DataFrame:
    """Train the slice model, the one with context and both heads; compare each with the slice model."""
    runs = {}
    for name, context in (("slice", 0), ("context", 1)):
        config = TrainConfig(**SETTINGS, epochs=epochs, patience_epochs=epochs, context=context)
        run, opened = begin(folder / name, cache, config, HERE)
        fit(run, opened, RUNTIME, HERE)
        evaluate(run, opened, "test", RUNTIME, HERE, tta=False)
        runs[name] = run.path
    series.features(runs["slice"], None, (), RUNTIME, HERE)
    for head in ("gru", "transformer"):
        made = series.begin(folder / head, runs["slice"], None, {"head": head, "head_features": 64}, HERE)
        fit_head(*made, RUNTIME, HERE)
        evaluate(made[0], made[2], "test", RUNTIME, HERE, tta=False)
        runs[head] = made[0].path
    pairs = [compare(read_contestants([runs["slice"], runs[name]], "test")) for name in list(runs)[1:]]
    table = pd.concat(pairs)
    return table[table["score"] == "weighted_log_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    print(f"{'slices':<18}{'model':<14}{'slice model':>12}{'this':>9}{'this - it':>11}  95 % interval")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in ("in order", "in random order"):
            began = time.process_time()
            where = Path(folder, name.replace(" ", "-"))
            write_planted(where / "cache.zarr", options.patients, shuffled=name != "in order")
            for line in measure(where / "cache.zarr", where, options.epochs).to_dict("records"):
                span = f"[{line['low']:+.4f}, {line['high']:+.4f}]"
                print(
                    f"{name:<18}{line['b']:<14}{line['value_a']:>12.4f}{line['value_b']:>9.4f}"
                    f"{line['difference']:>+11.4f}  {span}",
                    flush=True,
                )
            print(f"{'':18}{time.process_time() - began:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()

"""This file shows that a model learns the phantom from its pictures: its scores beside those of position alone.

    python benchmarks/separability.py [--patients 160] [--epochs 8] [--size 96] [--model resnet18] [--folder DIR]

Writes a phantom, builds its cache, trains, and compares ROC AUC by class on the test patients with a gradient boosting
on `z_norm` that was fitted to the same training patients. Minutes on two cores.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]


def run(*arguments: object) -> None:
    subprocess.run([str(argument) for argument in arguments], check=True)


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Make phantom, cache and run where the folder does not have them yet."""
    if not (folder / "cache.zarr" / "zarr.json").exists():
        run("pipeline", "phantom", "--out", folder, "--patients", options.patients, "--seed", 1)
        labels = ("--labels", folder / "labels.csv", "--dataset", "phantom", "--size", options.size)
        run("pipeline", "build", "--src", folder / "dicoms", "--out", folder / "cache.zarr", *labels)
    if not (folder / "run").exists():
        model = ("--model", options.model, "--weights", "none", "--size", options.size, "--device", "cpu")
        length = ("--epochs", options.epochs, "--batch-size", 32, "--lr", 1e-3)
        run("train", "run", "--cache", folder / "cache.zarr", "--out", folder / "run", *model, *length)


def compare(folder: Path) -> pd.DataFrame:
    """ROC AUC by class on the test slices: of the run, and of position alone."""
    table = pd.read_csv(folder / "cache.zarr" / "metadata.csv")
    split = pd.read_csv(folder / "run" / "split.csv").set_index("patient_id")["split"]
    train = table[table["patient_id"].map(split) == "train"]
    test = pd.read_csv(folder / "run" / "predictions_test.csv")
    lines = []
    for name in CLASSES:
        if test[name].nunique() < 2 or train[name].nunique() < 2:
            continue
        position = HistGradientBoostingClassifier(random_state=0).fit(train[["z_norm"]], train[name])
        alone = position.predict_proba(test[["z_norm"]])[:, 1]
        scores = roc_auc_score(test[name], test[f"p_{name}"]), roc_auc_score(test[name], alone)
        lines.append((name, int(test[name].sum()), *scores))
    return pd.DataFrame(lines, columns=["class", "positive slices", "model", "position alone"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        prepare(folder, options)
        print(compare(folder).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()

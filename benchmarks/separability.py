"""Show that models learn the phantom from its images: their scores compared with those of position alone.

    python benchmarks/separability.py [--patients 160] [--epochs 8] [--size 96] [--model resnet18] [--folder DIR]

Writes a phantom, builds its cache, trains, and compares the ROC AUC of each class on the test patients: of the run; of
extra trees on simple features of the images (numbers of pixels by HU and depth under the skull, and left against
right); and of gradient boosting on `z_norm`. All are fitted to the same training patients. Takes minutes on two cores.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

DEPTHS_PX = ((1, 2), (3, 5), (6, 8), (9, 12), (13, 99))  # under the inner table
LEVELS_HU = (0, 12, 20, 42, 47, 52, 58, 66)
CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]


def run(*arguments: object) -> None:
    subprocess.run([str(argument) for argument in arguments], check=True)


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Create phantom, cache and run, unless the folder has them."""
    if not (folder / "cache.zarr" / "zarr.json").exists():
        run("pipeline", "phantom", "--out", folder, "--patients", options.patients, "--seed", 1)
        labels = ("--labels", folder / "labels.csv", "--dataset", "phantom", "--size", options.size)
        run("pipeline", "build", "--src", folder / "dicoms", "--out", folder / "cache.zarr", *labels)
    if not (folder / "run").exists():
        model = ("--model", options.model, "--weights", "none", "--size", options.size, "--device", "cpu")
        length = ("--epochs", options.epochs, "--batch-size", 32, "--lr", 1e-3)
        run("train", "run", "--cache", folder / "cache.zarr", "--out", folder / "run", *model, *length)


def compare(folder: Path) -> pd.DataFrame:
    """Return the ROC AUC of each class on the test slices: of the run, of image features, and of position alone."""
    table = pd.read_csv(folder / "cache.zarr" / "metadata.csv")
    split = pd.read_csv(folder / "run" / "split.csv").set_index("patient_id")["split"]
    train = table[table["patient_id"].map(split) == "train"]
    test = pd.read_csv(folder / "run" / "predictions_test.csv")
    pictures = [features(folder / "cache.zarr", lines["row"].to_numpy()) for lines in (train, test)]
    lines = []
    for name in CLASSES:
        if test[name].nunique() < 2 or train[name].nunique() < 2:
            continue
        position = HistGradientBoostingClassifier(random_state=0).fit(train[["z_norm"]], train[name])
        alone = position.predict_proba(test[["z_norm"]])[:, 1]
        trees = ExtraTreesClassifier(300, min_samples_leaf=3, class_weight="balanced", random_state=0)
        simple = trees.fit(pictures[0], train[name]).predict_proba(pictures[1])[:, 1]
        scores = [roc_auc_score(test[name], p) for p in (test[f"p_{name}"], simple, alone)]
        lines.append((name, int(test[name].sum()), *scores))
    return pd.DataFrame(lines, columns=["class", "positive slices", "run", "image features", "position alone"])


def features(cache: Path, rows: np.ndarray) -> np.ndarray:
    """Return features of the images in these rows, (n, F) float32."""
    group = zarr.open_group(cache, mode="r")
    (path,) = group.attrs["sizes"].values()
    images = group[path].oindex[rows]
    hu = images[:, 1].astype(np.float32) / 255 * 130 - 15  # the subdural window's range
    bone = images[:, 2] > 100
    half = hu.shape[2] // 2
    depth = depth_under(bone)
    found = [(depth > 0).sum((1, 2)), bone.sum((1, 2))]
    for low, high in DEPTHS_PX:
        layer = (depth >= low) & (depth <= high)
        for picture in (hu, smooth(hu)):
            found += [(layer & (picture > level)).sum((1, 2)) / (layer.sum((1, 2)) + 1) for level in LEVELS_HU]
            blood = layer & (picture > 48) & (picture < 95)
            left, right = blood[:, :, :half].sum((1, 2)), blood[:, :, half:].sum((1, 2))
            found += [left + right, np.abs(left - right), blood[:, :half].sum((1, 2))]
    return np.stack(found, 1).astype(np.float32)


def depth_under(bone: np.ndarray) -> np.ndarray:
    """Return each pixel's depth inside the ring of bone in pixels, 0 outside, (n, S, S), from (n, S, S) bool."""
    reach = np.logical_or.accumulate
    inside = reach(bone, 1) & reach(bone[:, ::-1], 1)[:, ::-1] & ~bone
    inside &= reach(bone, 2) & reach(bone[:, :, ::-1], 2)[:, :, ::-1]
    depth = np.zeros(bone.shape, np.uint8)
    for _ in range(DEPTHS_PX[-1][0]):
        depth += inside
        inner = inside.copy()
        inner[:, 1:] &= inside[:, :-1]
        inner[:, :-1] &= inside[:, 1:]
        inner[:, :, 1:] &= inside[:, :, :-1]
        inner[:, :, :-1] &= inside[:, :, 1:]
        inside = inner
    return depth


def smooth(hu: np.ndarray) -> np.ndarray:
    """Return the mean of 3 x 3 pixels, leaving the border unchanged."""
    mean = hu.copy()
    size = hu.shape[1]
    shifted = [hu[:, 1 + y : size - 1 + y, 1 + x : size - 1 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    mean[:, 1:-1, 1:-1] = sum(shifted) / 9
    return mean


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

"""Print the figures of the demo that matter: python scripts/demo_figures.py demo."""

import json
import sys
from pathlib import Path

import numpy as np

from training.data.cache import open_cache
from training.data.split import read_split
from training.scores.metrics import score


def main(out: Path) -> None:
    """Print what the slice model and the head over series reach on test patients, and what knows no picture."""
    slices, series = (json.loads((out / name / "scores_test.json").read_text()) for name in ("run", "series"))
    of_any = series["classes"]["any"]
    patients, prior = constant(out)
    chance = of_any["positives"] / of_any["n"]
    print(
        f"\nOn {patients} patients that no model has seen, {of_any['n']:,} slices, {of_any['positives']:,} with blood:"
    )
    print(f"{'':28}{'one slice':>10}{'series':>10}{'no picture':>12}")
    ranked = (("ROC AUC of any", "roc_auc", 0.5), ("average precision of any", "average_precision", chance))
    for words, key, none in ranked:
        values = (of["classes"]["any"][key] for of in (slices, series))
        print(f"  {words:26}" + "".join(f"{value:>10.3f}" for value in values) + f"{none:>12.3f}")
    f1 = (of["at_f1_threshold"]["macro"]["f1"] for of in (slices, series))
    print(f"  {'mean F1 of the classes':26}" + "".join(f"{value:>10.3f}" for value in f1))
    loss = (of["weighted_log_loss"] for of in (slices, series))
    print(f"  {'weighted log loss':26}" + "".join(f"{value:>10.3f}" for value in loss) + f"{prior:>12.3f}")


def constant(out: Path) -> tuple[int, float]:
    """Return the number of test patients, and the weighted log loss there of the shares of the training slices."""
    cache = open_cache(out / "cache.zarr")
    subsets, labels = read_split(out / "run" / "split.csv", cache.table), cache.labels()
    shares = labels[subsets == "train"].mean(axis=0, dtype=np.float64)
    tested = labels[subsets == "test"]
    found = score(tested, np.tile(shares, (len(tested), 1)), cache.classes, cache.class_weights)
    return cache.table["patient_id"][subsets == "test"].nunique(), found["weighted_log_loss"]


main(Path(sys.argv[1]))

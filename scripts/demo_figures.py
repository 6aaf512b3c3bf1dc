"""Print the main scores of the demo: python scripts/demo_figures.py demo."""

import json
import sys
from pathlib import Path

import numpy as np

from training.data.cache import open_cache
from training.data.split import read_split
from training.scores.metrics import score


def main(out: Path) -> None:
    """Print the test scores of the slice model, of the head over series, and of constant predictions."""
    slices, series = (json.loads((out / name / "scores_test.json").read_text()) for name in ("run", "series"))
    of_any = series["classes"]["any"]
    patients, prior = score_of_shares(out)
    prevalence = of_any["positives"] / of_any["n"]
    print(f"\nTest set: {patients} patients, {of_any['n']:,} slices, {of_any['positives']:,} with blood")
    print(f"{'':28}{'one slice':>10}{'series':>10}{'constant':>12}")
    ranked = (("ROC AUC of any", "roc_auc", 0.5), ("average precision of any", "average_precision", prevalence))
    for words, key, constant in ranked:
        values = (of["classes"]["any"][key] for of in (slices, series))
        print(f"  {words:26}" + "".join(f"{value:>10.3f}" for value in values) + f"{constant:>12.3f}")
    f1 = (of["at_f1_threshold"]["macro"]["f1"] for of in (slices, series))
    print(f"  {'mean F1 of the classes':26}" + "".join(f"{value:>10.3f}" for value in f1))
    loss = (of["weighted_log_loss"] for of in (slices, series))
    print(f"  {'weighted log loss':26}" + "".join(f"{value:>10.3f}" for value in loss) + f"{prior:>12.3f}")


def score_of_shares(out: Path) -> tuple[int, float]:
    """Return the number of test patients, and the weighted log loss of always predicting the training shares."""
    cache = open_cache(out / "cache.zarr")
    subsets, labels = read_split(out / "run" / "split.csv", cache.table), cache.labels()
    shares = labels[subsets == "train"].mean(axis=0, dtype=np.float64)
    tested = labels[subsets == "test"]
    found = score(tested, np.tile(shares, (len(tested), 1)), cache.classes, cache.class_weights)
    return cache.table["patient_id"][subsets == "test"].nunique(), found["weighted_log_loss"]


main(Path(sys.argv[1]))

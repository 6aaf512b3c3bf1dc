"""Run the demo with several seeds: the time of each step, the scores, and whether heat maps peak on the bleeds.

    python -m benchmarks.demo --seed 0 --seed 1 --seed 2 --folder demos

Takes four to five minutes per seed on two quiet cores.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
from scipy.ndimage import binary_dilation

from phantom.bleeds import CLASSES
from phantom.study import count_studies, make_study, scramble
from training.data.cache import open_cache
from training.report.heatmap import open_heat_maps
from training.report.pictures import read_images
from training.run.runs import open_run
from training.scores.results import read_results

SCRIPT = Path(__file__).parent.parent / "scripts" / "demo.sh"
BLEEDING = 9  # as in scripts/demo.sh
NEAR_PX = 4  # half a cell of small_resnet's last feature maps at 96 px
INSIDE = 55  # grey level of the bone window above which a pixel is not air


@click.command()
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("demos"), help="Folder in which each seed gets a folder."
)
@click.option("--again", is_flag=True, help="Do not run the demo, only read existing results.")
def main(seeds: tuple[int, ...], folder: Path, again: bool) -> None:
    """Run the demo with each seed, and print a table."""
    lines = []
    for seed in seeds:
        out = folder.resolve() / str(seed)
        times = {} if again else run_demo(out, seed)
        lines.append({"seed": str(seed), **times, **scores_of(out), **peaks_on_bleeds(out, seed)})
    print("| " + " | ".join(lines[0]) + " |\n" + "|---" * len(lines[0]) + "|")
    for line in lines:
        print("| " + " | ".join(line.values()) + " |")


def run_demo(out: Path, seed: int) -> dict[str, str]:
    """Run the demo and return the seconds of each step and in total."""
    environment = os.environ | {"DEMO_OUT": str(out), "DEMO_SEED": str(seed)}
    done = subprocess.run(["bash", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, file=sys.stderr)
    steps = re.findall(r"^\$ (?:pipeline|train) (\w+).*?\((\d+) s since the start\)$", done.stdout, re.M | re.S)
    ends = [int(end) for _, end in steps]
    taken = np.diff([0, *ends]).tolist()
    return {f"{name}, s": str(of) for (name, _), of in zip(steps, taken, strict=True)} | {"total, s": str(ends[-1])}


def scores_of(out: Path) -> dict[str, str]:
    """Return the test scores of the slice model and of the head."""
    found = {}
    for name in ("run", "series"):
        scores = json.loads((out / name / "scores_test.json").read_text())
        of_any = scores["classes"]["any"]
        found[f"{name}: AUC, AP of any"] = f"{of_any['roc_auc']:.3f}, {of_any['average_precision']:.3f}"
        found[f"{name}: log loss"] = f"{scores['weighted_log_loss']:.3f}"
        by_rule = (scores[key]["macro"]["f1"] for key in ("at_f1_threshold", "at_threshold"))
        found[f"{name}: mean F1 (F1 thresholds, Youden's thresholds)"] = ", ".join(f"{f1:.3f}" for f1 in by_rule)
    return found


def peaks_on_bleeds(out: Path, seed: int) -> dict[str, str]:
    """Return the share of the slice model's true positives whose heat map peaks within NEAR_PX of that blood.

    The value by chance, in brackets, is the share of the head that is as near.
    """
    run, cache = open_run(out / "run"), open_cache(out / "cache.zarr")
    results = read_results(out / "run")
    known = results.predictions["test"]
    thresholds = results.scores["test"]["at_f1_threshold"]["thresholds"]
    size = run.config.size_px
    blood = planted(seed, set(known.slices["patient_id"]), cache.num_slices)
    maps = open_heat_maps(run)
    assert maps is not None, "captum is not installed"
    hits, chance = [], []
    for k, name in enumerate(CLASSES):
        assert known.classes[k] == name
        called = (known.labels[:, k] == 1) & (known.probabilities[:, k] >= thresholds[name])
        lines = np.flatnonzero(called)
        if not len(lines):
            continue
        images = read_images(cache, size, known.slices["row"].to_numpy()[lines])
        heat = maps.compute(images, known.slices["z_norm"].to_numpy()[lines], np.full(len(lines), k))
        for image, one, name_of in zip(images, heat, known.slices["image_id"].to_numpy()[lines], strict=True):
            near = binary_dilation(shrink(blood[name_of] == k + 1, size), iterations=NEAR_PX)
            hits.append(near.ravel()[one.argmax()])
            inside = image[-1] > INSIDE
            chance.append((near & inside).sum() / inside.sum())
    return {"heat map peaks on the bleed (chance)": f"{np.mean(hits):.2f} of {len(hits)} ({np.mean(chance):.2f})"}


def planted(seed: int, patients: set[str], slices: int) -> dict[str, np.ndarray]:
    """Return the planted blood of the given patients by image name, (256, 256) uint8 each."""
    found: dict[str, np.ndarray] = {}
    for patient in range(slices):
        if len(patients) == 0:
            break
        if (name := f"ID_{scramble(patient, 32, seed):08x}") not in patients:
            continue
        patients.remove(name)
        for number in range(count_studies(seed, patient)):
            study = make_study(seed, patient, number, bleeding=BLEEDING)
            found |= dict(zip(study.uids, study.blood, strict=True))
    return found


def shrink(mask: np.ndarray, size: int) -> np.ndarray:
    """Reduce a mask, (H, H) bool, to (size, size); a cell is True if any of its pixels is."""
    small = np.zeros((size, size), bool)
    rows, columns = np.nonzero(mask)
    small[rows * size // len(mask), columns * size // len(mask)] = True
    return small


if __name__ == "__main__":
    main()

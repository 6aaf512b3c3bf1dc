"""The demo as a whole: for each seed the time of each step, the scores, and whether heat maps lie on the bleeds.

python -m benchmarks.demo --seed 0 --seed 1 --seed 2 --folder demos    # four to five minutes a seed on two quiet cores
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
BLEEDING = 9  # as scripts/demo.sh has it
NEAR_PX = 4  # half a place of small_resnet's last feature maps at 96 px: nearer is within it
INSIDE = 55  # grey level of the bone window above which a pixel is no air


@click.command()
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demos"), help="Gets a folder a seed.")
@click.option("--again", is_flag=True, help="Do not run what is there: only read it.")
def main(seeds: tuple[int, ...], folder: Path, again: bool) -> None:
    """Run the demo with each seed, and print a table."""
    lines = []
    for seed in seeds:
        out = folder.resolve() / str(seed)
        times = {} if again else run_demo(out, seed)
        lines.append({"seed": str(seed), **times, **figures(out), **on_bleeds(out, seed)})
    print("| " + " | ".join(lines[0]) + " |\n" + "|---" * len(lines[0]) + "|")
    for line in lines:
        print("| " + " | ".join(line.values()) + " |")


def run_demo(out: Path, seed: int) -> dict[str, str]:
    """Run it; return the seconds of each step, and of all."""
    environment = os.environ | {"DEMO_OUT": str(out), "DEMO_SEED": str(seed)}
    done = subprocess.run(["bash", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, file=sys.stderr)
    steps = re.findall(r"^\$ (?:pipeline|train) (\w+).*?\((\d+) s since the start\)$", done.stdout, re.M | re.S)
    ends = [int(end) for _, end in steps]
    taken = np.diff([0, *ends]).tolist()
    return {f"{name}, s": str(of) for (name, _), of in zip(steps, taken, strict=True)} | {"all, s": str(ends[-1])}


def figures(out: Path) -> dict[str, str]:
    """Return the scores of the slice model and of the head, on test."""
    found = {}
    for name in ("run", "series"):
        scores = json.loads((out / name / "scores_test.json").read_text())
        of_any = scores["classes"]["any"]
        found[f"{name}: AUC, AP of any"] = f"{of_any['roc_auc']:.3f}, {of_any['average_precision']:.3f}"
        found[f"{name}: log loss"] = f"{scores['weighted_log_loss']:.3f}"
        by_rule = (scores[key]["macro"]["f1"] for key in ("at_f1_threshold", "at_threshold"))
        found[f"{name}: mean F1 (F1's, Youden's thresholds)"] = ", ".join(f"{f1:.3f}" for f1 in by_rule)
    return found


def on_bleeds(out: Path, seed: int) -> dict[str, str]:
    """Return in how many true positives of the slice model the heat's peak lies within NEAR_PX of that blood.

    Beside it what chance would have: the share of the head that lies so near.
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
    return {
        "peaks on the bleed, of true positives (chance)": f"{np.mean(hits):.2f} of {len(hits)} ({np.mean(chance):.2f})"
    }


def planted(seed: int, patients: set[str], slices: int) -> dict[str, np.ndarray]:
    """Return by image the planted blood, (256, 256) uint8, of the patients named."""
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
    """(H, H) bool -> (size, size): where any of it lies."""
    small = np.zeros((size, size), bool)
    rows, columns = np.nonzero(mask)
    small[rows * size // len(mask), columns * size // len(mask)] = True
    return small


if __name__ == "__main__":
    main()

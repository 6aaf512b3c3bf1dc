"""Keep one run's model in memory and ask it about the caches of studies, one after another."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache, open_cache
from training.errors import StudyError
from training.model.network import FusionNet
from training.report.heatmap import HeatMaps, open_heat_maps
from training.report.pictures import read_images
from training.run.apply import run_predictions
from training.run.config import Runtime
from training.run.distributed import Processes, choose_device
from training.run.inference import Stopped
from training.run.runs import Run
from training.run.setup import load_slice_network
from training.scores.evaluation import read_operating
from training.scores.operating import Operating
from training.study.answer import Answer, make_answer
from training.study.plausible import warnings_of

TOGETHER = 16  # slices whose heat maps are computed at once


@dataclass(frozen=True)
class StudyModel:
    """A run that is ready to answer.

    Attributes:
        operating: thresholds and calibration by level, empty where validation has not been scored (with TTA).
        tta: average over mirror images and small rotations.
    """

    run: Run
    net: FusionNet
    processes: Processes
    runtime: Runtime
    operating: Mapping[str, Operating]
    tta: bool


@dataclass(frozen=True)
class Heat:
    """Where the evidence of each slice lies.

    Attributes:
        maps: (n, S, S) float32 in [-1, 1], in the order of the answer's slices.
        classes: (n,) int64, the class that each map is of.
    """

    maps: np.ndarray
    classes: np.ndarray


def open_model(run: Run, device: str, *, tta: bool = False) -> StudyModel:
    """Bring a run's best weights into memory.

    Raises:
        RunError: it has no weights, or its thresholds cannot be read. ConfigError: no such device.
    """
    processes = Processes(0, 1, choose_device(device))
    operating = read_operating(run.path, "_tta" if tta else "")
    return StudyModel(run, load_slice_network(run, processes), processes, Runtime(device), operating, tta)


def answer(
    model: StudyModel, cache_path: Path, deadline: float | None = None, clock: Callable[[], float] = time.monotonic
) -> tuple[Answer, Cache]:
    """Answer what a study's cache holds.

    Args:
        deadline: on the clock; None for no limit.

    Raises:
        StudyError: the deadline has passed. RunError: the cache is not of the run's kind.
    """
    cache, run = open_cache(cache_path), model.run
    everything = np.arange(cache.num_slices)
    try:
        lines, probabilities = run_predictions(
            run, cache, everything, model.runtime, model.processes, tta=model.tta, net=model.net,
            asked_to_stop=lambda: deadline is not None and clock() > deadline,
        )  # fmt: skip
    except Stopped as error:
        raise StudyError("the time limit has passed; give one study at a time, or allow more time") from error
    found = make_answer(
        cache, lines, probabilities, run.data.classes, operating=model.operating,
        warnings=warnings_of(cache, run.config.size_px, lines), left_out=read_rejects(cache_path),
    )  # fmt: skip
    return found, cache


def read_rejects(cache: Path) -> pd.DataFrame:
    """Return rejects.csv of a cache that nobody else builds: path, code, message."""
    return pd.read_csv(cache / "rejects.csv", dtype=str, keep_default_na=False)


def images_of(found: Answer, cache: Cache, size_px: int) -> np.ndarray:
    """Return the images of an answer's slices, in its order, (n, C, S, S) uint8."""
    return read_images(cache, size_px, cache.table["row"].to_numpy()[found.lines])


def heat_maps(run: Run) -> HeatMaps:
    """Return what asks a run's network where its evidence lies.

    Raises:
        StudyError: the network or the installation gives no heat maps.
    """
    maps = open_heat_maps(run)
    if maps is None:
        raise StudyError(f"{run.path}: no heat maps: {HeatMaps.MISSING}; leave --heatmap out")
    return maps


def heat_of(maps: HeatMaps, run: Run, found: Answer, cache: Cache) -> Heat:
    """Say where in each slice the evidence of its likeliest class lies; `any` is asked for only where it is alone."""
    probabilities = found.probabilities("slices")
    asked = [k for k, name in enumerate(found.classes) if name != "any"] or [0]
    classes = np.array(asked, np.int64)[probabilities[:, asked].argmax(axis=1)]
    places, rows = found.slices["z_norm"].to_numpy(), cache.table["row"].to_numpy()[found.lines]
    parts = []
    for at in range(0, len(rows), TOGETHER):
        of = slice(at, at + TOGETHER)
        images = read_images(cache, run.config.size_px, rows[of], maps.context)
        parts.append(maps.compute(images, places[of], classes[of]))
    return Heat(np.concatenate(parts), classes)


def describe(model: StudyModel) -> dict[str, Any]:
    """Say in plain values which model answers and what it was trained on."""
    run = model.run
    windows = [{"name": name, "level_hu": level, "width_hu": width} for name, level, width in run.data.windows]
    return {
        "name": run.path.resolve().name,
        "model": run.config.model,
        "size_px": run.config.size_px,
        "windows": windows,
        "position": run.config.position,
        "weights": run.config.weights,
        "epochs": run.config.epochs,
        "commit": run.data.commit,
        "tta": model.tta,
        "patients": _patients(run.split),
    }


def _patients(split: Path) -> dict[str, int]:
    if not split.exists():
        return {}
    subsets = pd.read_csv(split, dtype=str, keep_default_na=False)["split"].value_counts()
    return {str(subset): int(count) for subset, count in subsets.items()}

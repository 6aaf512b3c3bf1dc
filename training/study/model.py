"""A run's model in memory, which predicts the caches of studies."""

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
from training.run.task import Task
from training.scores.evaluation import read_operating
from training.scores.operating import Operating
from training.study.answer import Answer, make_answer
from training.study.plausible import warnings_of

HEAT_BATCH = 16


@dataclass(frozen=True)
class StudyModel:
    """A run whose model is in memory.

    Attributes:
        run: the run.
        net: its slice network.
        processes: the process and its device.
        runtime: device and threads.
        operating: thresholds and calibration by level; empty if validation has not been scored (with TTA).
        tta: whether to average over mirror images and small rotations.
    """

    run: Run
    net: FusionNet
    processes: Processes
    runtime: Runtime
    operating: Mapping[str, Operating]
    tta: bool


@dataclass(frozen=True)
class Heat:
    """The heat maps of an answer's slices.

    Attributes:
        maps: (n, S, S) float32 in [-1, 1], in the order of the answer's slices.
        classes: (n,) int64, index of the class of each map.
    """

    maps: np.ndarray
    classes: np.ndarray


def open_model(run: Run, device: str, *, tta: bool = False) -> StudyModel:
    """Load a run's best weights.

    Raises:
        RunError: if the run has no weights, or its thresholds cannot be read.
        ConfigError: if there is no such device.
    """
    processes = Processes(0, 1, choose_device(device))
    operating = read_operating(run.path, "_tta" if tta else "")
    return StudyModel(run, load_slice_network(run, processes), processes, Runtime(device), operating, tta)


def answer(
    model: StudyModel, cache_path: Path, deadline: float | None = None, clock: Callable[[], float] = time.monotonic
) -> tuple[Answer, Cache]:
    """Return the answer to the studies in a cache, and the opened cache.

    Args:
        model: the model.
        cache_path: path of the cache.
        deadline: time limit on the clock; None for no limit.
        clock: the clock, in seconds.

    Raises:
        StudyError: if the deadline has passed.
        RunError: if the cache has other windows or classes than the run.
    """
    cache, run = open_cache(cache_path), model.run
    task, everything = Task(run, cache, model.runtime, model.processes), np.arange(cache.num_slices)
    try:
        lines, probabilities = run_predictions(
            task, everything, tta=model.tta, net=model.net,
            asked_to_stop=lambda: deadline is not None and clock() > deadline,
        )  # fmt: skip
    except Stopped as error:
        raise StudyError("the time limit has passed; give one study at a time, or allow more time") from error
    found = make_answer(
        cache, pd.DataFrame(probabilities, lines, list(run.data.classes)), operating=model.operating,
        warnings=warnings_of(cache, run.config.size_px, lines), left_out=read_rejects(cache_path),
    )  # fmt: skip
    return found, cache


def read_rejects(cache: Path) -> pd.DataFrame:
    """Return rejects.csv of a cache that no other process builds: path, code, message."""
    return pd.read_csv(cache / "rejects.csv", dtype=str, keep_default_na=False)


def images_of(found: Answer, cache: Cache, size_px: int) -> np.ndarray:
    """Return the images of an answer's slices in their order, (n, C, S, S) uint8."""
    return read_images(cache, size_px, cache.table["row"].to_numpy()[found.lines])


def heat_maps(run: Run) -> HeatMaps:
    """Return the heat maps of a run.

    Raises:
        StudyError: if the run has no weights, or captum is not installed.
    """
    maps = open_heat_maps(run)
    if maps is None:
        raise StudyError(f"{run.path}: no heat maps: {HeatMaps.MISSING}; leave --heatmap out")
    return maps


def heat_of(maps: HeatMaps, run: Run, found: Answer, cache: Cache) -> Heat:
    """Return a heat map of the likeliest class of each slice; `any` counts only if it is the only class."""
    probabilities = found.probabilities("slices")
    candidates = [k for k, name in enumerate(found.classes) if name != "any"] or [0]
    classes = np.array(candidates, np.int64)[probabilities[:, candidates].argmax(axis=1)]
    places, rows = found.slices["z_norm"].to_numpy(), cache.table["row"].to_numpy()[found.lines]
    parts = []
    for at in range(0, len(rows), HEAT_BATCH):
        of = slice(at, at + HEAT_BATCH)
        images = read_images(cache, run.config.size_px, rows[of], maps.context)
        parts.append(maps.compute(images, places[of], classes[of]))
    return Heat(np.concatenate(parts), classes)


def describe(model: StudyModel) -> dict[str, Any]:
    """Return a description of the model and its training as JSON values."""
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

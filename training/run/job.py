"""Complete jobs: train a run from its folder to its report, or evaluate a finished one."""

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.cache import Cache, open_cache
from training.data.linked import link, table_of
from training.data.split import SUBSETS, split_patients
from training.errors import CacheError, RunError
from training.model.backbones import TIMM
from training.model.network import build_model, check_size
from training.report.report import write_report
from training.run import config as settings
from training.run.apply import run_views
from training.run.config import TrainConfig
from training.run.distributed import Processes
from training.run.functions import code_digest, find_function, is_own
from training.run.inference import VIEWS
from training.run.loggers import Loggers
from training.run.loop import fit
from training.run.owner import owned
from training.run.runs import NewRun, Run, check_free, create_run, new_folder, open_run
from training.run.setup import check_context
from training.run.streams import lines_of
from training.run.tables import prediction_table, write_json, write_table
from training.run.task import Task
from training.scores.content import content_of, open_own_cache, write_content
from training.scores.evaluation import assess, log_evaluation
from training.scores.external import external_lines
from training.scores.leakage import check_run
from training.scores.metrics import score
from training.scores.pooling import at_level
from training.scores.predictions import from_table
from training.series.predict import predict_series

VERSIONS = ("torch", "torchvision", "numpy", "ich-cache")


def begin(
    path: Path, cache_path: str | Path, config: TrainConfig, processes: Processes, local_copy: Path | None = None
) -> tuple[Run, Cache]:
    """Create the folder of a new run on the cache's current commit: one process creates it, and all open it.

    Args:
        path: the run's folder, new or empty.
        cache_path, local_copy: as for `open_cache`.

    Raises:
        TrainingError: if the folder is in use, or the cache does not fit the settings.
    """
    if processes.writes:
        check_free(path)
        cache = open_cache(cache_path, local_copy=local_copy)
        cache.array(config.size_px)
        channels = check_context(config, cache)
        labelled = ~np.isnan(cache.labels()).all(axis=1)
        shares = config.split_fractions or cache.splits
        config = dataclasses.replace(config, split_fractions=shares)
        links = link(cache, config.size_px)
        subsets = split_patients(cache.table, cache.classes, shares, seed=config.seed, units=links.units)
        usable = labelled & ~links.left_out
        _refuse_unlabelled(cache, subsets[usable], shares)
        rows = cache.table["row"].to_numpy()[usable & (subsets == "train")]
        # Fail before creating the folder if the model, its weights or its size are unusable.
        net = build_model(config, len(cache.classes), channels)
        check_size(net, config)
        for name in ("augment", "loss"):
            if (function := getattr(config, name)) != "default":
                find_function(function, name)
        mean_std, content = cache.mean_std(config.size_px, rows), content_of(cache, config.size_px)
        with new_folder(path):
            write_content(path, content)
            about = environment(config, processes) | {"weights": net.origin}
            create_run(path, cache, NewRun(config, subsets, mean_std, about, table_of(links, cache)))
    processes.wait()
    run = open_run(path)
    return run, open_cache(cache_path, run.data.commit, local_copy)


def _refuse_unlabelled(cache: Cache, labelled_subsets: np.ndarray, shares: Sequence[float]) -> None:
    """Raise a CacheError if a subset with a share of the patients would have no labelled slice."""
    for subset, share in zip(SUBSETS, shares, strict=True):
        if share > 0 and not (labelled_subsets == subset).any():
            raise CacheError(
                f"{cache.path}: no slice with a label would be in the {subset} set; label more of its patients, and "
                "run: pipeline build ... --labels FILE"
            )


def resume(
    path: Path, cache_path: str | Path | None, overrides: Mapping[str, Any], local_copy: Path | None = None
) -> tuple[Run, Cache]:
    """Open a run to be resumed, on the commit that it started with.

    Args:
        path: the run's folder.
        cache_path: the cache, if it has moved; None for where it was.
        overrides: settings given on the command line, which must equal those of the run.
        local_copy: as for `open_cache`.

    Raises:
        RunError: if a setting differs.
        CacheError: if the commit no longer exists.
    """
    run = open_run(path)
    if run.has_head:
        raise RunError(f"{path}: is a head over series; to continue: train series --resume {path}")
    wanted = settings.from_mapping(settings.to_mapping(run.config) | dict(overrides))
    if changes := settings.differences(run.config, wanted):
        raise RunError(
            f"{path}: was started with other settings: {'; '.join(changes)}; leave them out, or start a new run"
        )
    return run, open_cache(cache_path or run.data.cache, run.data.commit, local_copy)


def environment(config: TrainConfig, processes: Processes) -> dict[str, Any]:
    """Return the versions and hardware that a run computes with; if one changes, the last bits may differ.

    The user's own functions are listed with a digest of their source file.
    """
    device = processes.device
    own = {name: getattr(config, name) for name in ("model", "augment", "loss") if is_own(getattr(config, name))}
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in (*VERSIONS, *(["timm"] if config.model.startswith(TIMM) else []))},
        **{f"code of {text}": code_digest(text, name) for name, text in own.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": processes.count,
        "cpu_threads": torch.get_num_threads(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # this package itself, if it runs from a folder without being installed
        return "not installed"


def changed_environment(run: Run, processes: Processes) -> list[str]:
    """List the differences between this environment and the one that a run started in."""
    now = environment(run.config, processes)
    return [
        f"{name}: {run.environment.get(name)} then, {now[name]} now"
        for name in now
        if run.environment.get(name) != now[name]
    ]


def complete(task: Task) -> dict[str, Any]:
    """Train a run to the end, score its best weights on validation and test, and write its report.

    Returns:
        the scores on the test set; on the validation set if the run has no test set; empty if it has neither.
    """
    path = task.run.path
    with owned(path, again=f"run: train run --resume {path}") if task.processes.writes else nullcontext():
        fit(task)
        return finish(task)


def finish(task: Task) -> dict[str, Any]:
    """Score a trained run's best weights on validation and test, and write its report; return what `complete` does."""
    run, scores = task.run, dict[str, dict[str, Any]]()
    for subset in filter(run.has, SUBSETS[1:]):
        scores[subset] = evaluate(task, subset, tta=False)
    if task.processes.writes:
        write_report(run.path, task.cache)
        loggers = Loggers(run, task.runtime.loggers, step=0)
        loggers.finish(run, scores)
        loggers.close()
    return list(scores.values())[-1] if scores else {}


def open_to_evaluate(
    path: Path, cache_path: str | Path | None, subset: str, local_copy: Path | None = None
) -> tuple[Run, Cache]:
    """Open a run and the cache to score it on: its own or one with the same content, or any other for "external".

    Raises:
        RunError: if the cache's content is not that of the run's cache; the message names the difference.
    """
    run = open_run(path)
    if subset != "external":
        return run, open_own_cache(run, cache_path, local_copy)
    if cache_path is None:
        raise RunError(f"{path}: --split external needs the other cache; give --cache OTHER")
    return run, open_cache(cache_path, local_copy=local_copy)


def evaluate(task: Task, subset: str, *, tta: bool) -> dict[str, Any]:
    """Score a run's best weights on a subset of its split, or on all labelled slices of another cache.

    This writes `predictions_<subset>.csv` and `scores_<subset>.json`, and for a head over series also the predictions
    of the slice model alone, `slice_predictions_<subset>.csv`; with TTA, `_tta` is appended to the name of the subset.
    Scoring the validation set also fits the thresholds and the calibration; each evaluation of any other set is logged.

    Args:
        subset: validation, test, or "external" for another cache.

    Returns:
        the scores, as in the JSON, in the process that writes; empty in all others.

    Raises:
        RunError: if the split leaks; the message names the patients or slices.
    """
    run, cache, left_out = task.run, task.cache, None
    if subset == "external":
        lines, left_out = external_lines(run, cache)
    elif not run.has(subset):
        raise RunError(
            f"{run.path}: has no {subset} set, as its split_fractions are {run.config.split_fractions}; score another "
            "cache with --split external --cache OTHER, or start a new run with a share for it"
        )
    else:
        check_run(run, cache)
        lines = lines_of(run, cache, subset)
    name = predictions_name(subset, tta=tta)
    if run.has_head:
        predicted = predict_series(task, lines, tta=tta)
        lines, probabilities = predicted.lines, predicted.probabilities
        of_slices = prediction_table(cache, lines, predicted.of_slices, run.data.classes)
        write_table(run.path / f"slice_predictions_{name}.csv", of_slices)
    else:
        lines, by_view = run_views(task, lines, tta=tta)
        probabilities = by_view.mean(axis=1)
    if not task.processes.writes:
        return {}
    table = prediction_table(cache, lines, probabilities, run.data.classes)
    source: dict[str, Any] = {"dataset": cache.dataset, "commit": cache.commit}
    if left_out is not None:
        write_table(run.path / f"{name}_left_out.csv", left_out)
        source["left_out"] = {"patients": len(left_out), "slices": int(left_out["slices"].sum())}
    scores = {"source": source} | assess(
        run.path, name, from_table(table), run.data.class_weights, run.data.label_level
    )
    if tta and not run.has_head:
        scores["views"] = {view: view_loss(run, cache, lines, by_view[:, v]) for v, view in enumerate(VIEWS)}
    write_table(run.path / f"predictions_{name}.csv", table)
    write_json(run.path / f"scores_{name}.json", scores)
    if subset != "validation":
        log_evaluation(run.path, name, cache.commit, len(lines), datetime.now(UTC))
    return scores


def view_loss(run: Run, cache: Cache, lines: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the weighted log loss of a single TTA view, at the level of the labels."""
    known = at_level(from_table(prediction_table(cache, lines, probabilities, run.data.classes)), run.data.label_level)
    weights = np.array(run.data.class_weights)
    loss: float | None = score(known.labels, known.probabilities, known.classes, weights)["weighted_log_loss"]
    return loss


def predictions_name(subset: str, *, tta: bool) -> str:
    """Return the name used in the files of an evaluation: predictions_<name>.csv, scores_<name>.json."""
    return f"{subset}_tta" if tta else subset


def absolute_weights(weights: str) -> str:
    """Return the `weights` setting with any path made absolute."""
    return weights if weights in settings.WEIGHTS else os.path.abspath(weights)

"""Predict slices of any compatible cache with a run's best weights."""

from collections.abc import Callable

import numpy as np

from training.model.network import FusionNet
from training.run.inference import predict_views
from training.run.runs import check_compatible
from training.run.setup import load_slice_network
from training.run.streams import open_evaluation
from training.run.task import Task
from training.series.predict import predict_series


def run_predictions(
    task: Task,
    lines: np.ndarray,
    *,
    tta: bool,
    net: FusionNet | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict slices of a cache with a run's best weights, normalised as in its training.

    Args:
        lines: (n,) lines of the cache's table.
        tta: average over mirror images and small rotations.
        net: the slice network from `load_slice_network`, if it is already in memory.
        asked_to_stop: called after each batch; return True to stop. Ignored for a head over series.

    Returns:
        lines (n,) ascending and probabilities (n, K) float64.

    Raises:
        RunError: if the cache has different windows or classes, or the run has no weights yet.
        Stopped: if `asked_to_stop` returned True.
    """
    if task.run.has_head:
        check_compatible(task.run, task.cache)
        predicted = predict_series(task, lines, tta=tta, net=net)
        return predicted.lines, predicted.probabilities
    found, by_view = run_views(task, lines, tta=tta, net=net, asked_to_stop=asked_to_stop)
    return found, by_view.mean(axis=1)


def run_views(
    task: Task,
    lines: np.ndarray,
    *,
    tta: bool,
    net: FusionNet | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictions of a run without a head for each view, (n, V, K) float64; else as `run_predictions`."""
    check_compatible(task.run, task.cache)
    net, stream = net or load_slice_network(task.run, task.processes), open_evaluation(task, lines)
    return predict_views(task, net, stream, tta=tta, asked_to_stop=asked_to_stop)

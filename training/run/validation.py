"""Score an epoch on the validation set, and keep its weights if they are the best so far."""

from collections.abc import Callable
from typing import Any

import numpy as np

from training.model.network import FusionNet
from training.run.inference import predict_slices
from training.run.setup import Job, Learner, Setup, compiled
from training.run.tables import prediction_table
from training.run.watch import Watch
from training.scores.metrics import score
from training.scores.pooling import at_level
from training.scores.predictions import from_table


def validate(setup: Setup, learner: Learner[FusionNet], watch: Watch, stop: Callable[[], bool]) -> None:
    """Score the epoch on the validation set, log it, and keep the weights if they are the best so far.

    Without a validation set, the weights of the last epoch are kept.
    """
    share_statistics(setup, learner)
    if not setup.num_validation:
        keep_last(setup, learner, watch)
        return
    net = compiled(learner.evaluated, setup.config)
    lines, probabilities = predict_slices(setup, net, setup.validation, asked_to_stop=stop)
    table = prediction_table(setup.cache, lines, probabilities, setup.run.data.classes)
    known = at_level(from_table(table), setup.run.data.label_level)
    keep_if_better(setup, learner, watch, known.labels, known.probabilities)


def keep_if_better(
    setup: Job, learner: Learner[Any], watch: Watch, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Log the validation score of an epoch, given (n, K) each, and keep its weights if they are the best so far."""
    data = setup.run.data
    loss = score(labels, probabilities, data.classes, np.array(data.class_weights))["weighted_log_loss"]
    progress = learner.progress
    if loss is None:
        keep_last(setup, learner, watch)
        return
    watch.record_validation(progress, loss)
    watch.print_epoch(progress, loss)
    if loss < progress.best_loss:
        progress.best_loss, progress.best_epoch = loss, progress.epoch
        learner.improved = True


def keep_last(setup: Job, learner: Learner[Any], watch: Watch) -> None:
    """Keep an epoch's weights if they cannot be scored on a validation set."""
    watch.print_epoch(learner.progress, None)
    learner.progress.best_epoch = learner.progress.epoch
    learner.improved = True


def share_statistics(setup: Setup, learner: Learner[FusionNet]) -> None:
    """Copy the norm statistics of the first process to all others, since each has seen its own part of the last batch.

    DistributedDataParallel does the same before each training step.
    """
    setup.processes.broadcast(learner.net.buffers())
    if learner.ema is not None:
        setup.processes.broadcast(learner.ema.buffers())

"""Training of a head over series on stored features, with the schedule, checkpoints and log of any run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from training.data.stream import permutation
from training.errors import ConfigError
from training.model.loss import Loss, choose_loss
from training.run.checkpoints import load_checkpoint
from training.run.inference import Stopped
from training.run.loop import save_progress, train_to_end
from training.run.runs import Run
from training.run.schedule import Schedule
from training.run.setup import Job, Learner, restore_learner
from training.run.step import seed_dropout, update
from training.run.streams import lines_of
from training.run.tables import prediction_table
from training.run.task import Task
from training.run.validation import keep_if_better, keep_last
from training.run.watch import Watch
from training.scores.pooling import at_level
from training.scores.predictions import from_table
from training.series.batches import SeriesSet, gather, series_of
from training.series.features import check_alone, on_disk, read_features
from training.series.head import SeriesHead
from training.series.mix import choose_mix, sigmoid
from training.series.predict import corrections, load_head


@dataclass(frozen=True)
class SeriesJob(Job):
    """The state of a training job, with what a head needs in addition.

    Attributes:
        train: the complete series of the training set, including slices without labels.
        validation: the same of the validation set.
        labels: (N, K) float32, for all lines of the cache; NaN if missing or if the run leaves out the slice.
        loss: the loss function.
    """

    train: SeriesSet
    validation: SeriesSet
    labels: np.ndarray
    loss: Loss

    def scored(self, of: SeriesSet) -> np.ndarray:
        """Return the indices of a set's slices that have labels, (m,) int64."""
        return np.flatnonzero(~np.isnan(self.labels[of.lines]).all(axis=1))


def fit_head(task: Task, base: Run) -> None:
    """Train a head to the end from its last checkpoint, then choose its share per class on validation.

    If it is killed at any point and called again, the result is the same.

    Args:
        task: the head's run, its cache, and a single process.
        base: the slice model's run, which has the features.

    Raises:
        RunError: if features are missing, or for other weights or another commit.
        ConfigError: if there are several processes, or the settings accumulate gradients.
        Stopped: if the process was asked to stop.
    """
    job = _set_up(task, base)
    with _one_thread():
        train_to_end(job, _start(job), _train_epoch, _validate)
    run, of = task.run, job.validation
    scored = job.scored(of)
    correction = corrections(load_head(run, task.processes), of, job.device)
    known = from_table(prediction_table(task.cache, of.lines[scored], sigmoid(of.logits[scored]), run.data.classes))
    choose_mix(run, known, of.logits[scored], correction[scored])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread, since a step on a CPU is about a thousand small operations and threads would wait.

    On two idle cores a step of four series took 90 ms with two threads, for less than 30 ms of work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _set_up(task: Task, base: Run) -> SeriesJob:
    check_alone(task.processes)
    run, cache = task.run, task.cache
    if run.config.accumulation != 1:
        raise ConfigError("accumulation: does not apply to a head; set --batch-size to the number of series per step")
    subsets = [lines_of(run, cache, subset) for subset in ("train", "validation")]
    labels = np.full(cache.labels().shape, np.nan, np.float32)
    for labelled in subsets:
        labels[labelled] = cache.labels()[labelled]
    orders = [series_of(cache, labelled) for labelled in subsets]
    lines = np.concatenate([order.lines for order in orders])
    found = read_features(base, cache, lines, tta=False, allocate=on_disk(run.path))
    train, validation = (gather(cache, order, found) for order in orders)
    return SeriesJob(
        **vars(task),
        schedule=Schedule(len(train), run.config),
        class_weights=torch.tensor(run.data.class_weights, device=task.device),
        num_validation=len(validation),
        train=train,
        validation=validation,
        labels=labels,
        loss=choose_loss(run.config),
    )


def _start(job: SeriesJob) -> Learner[SeriesHead]:
    checkpoint = load_checkpoint(job.run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.config.seed)
        head = SeriesHead(job.train.features.shape[1], len(job.run.data.classes), job.config)
    return restore_learner(head.to(job.device), None, job.config, checkpoint)


def _train_epoch(job: SeriesJob, learner: Learner[SeriesHead], watch: Watch, stop: Callable[[], bool]) -> None:
    progress = learner.progress
    order = permutation(job.train.keys, job.config.seed, progress.epoch)
    learner.net.train()
    while progress.batches < job.schedule.batches:
        _train_step(job, learner, order[job.schedule.part(progress.batches)], watch)
        if progress.step % job.runtime.log_every == 0:
            watch.log_pending()
        if stop():
            raise Stopped
        if job.runtime.checkpoint_every and progress.step % job.runtime.checkpoint_every == 0:
            save_progress(job, learner, watch)
    watch.log_pending()


def _train_step(job: SeriesJob, learner: Learner[SeriesHead], series: np.ndarray, watch: Watch) -> None:
    """Update the head on a batch of series; the loss is the mean over their labelled slices."""
    progress = learner.progress
    batch, which = job.train.batch(series, job.device)
    lines = job.train.lines[which[which >= 0]]
    known = np.flatnonzero(~np.isnan(job.labels[lines]).all(axis=1))
    labels = torch.from_numpy(job.labels[lines[known]]).to(job.device)
    watch.record_batch(torch.from_numpy(lines), len(lines))
    seed_dropout(job.config.seed, progress.step, 0, job.device)
    corrected = (batch.logits + learner.net(batch))[batch.real][torch.from_numpy(known).to(job.device)]
    loss = job.loss(corrected, labels, job.class_weights).sum() / max(1, len(known))
    loss.backward()
    progress.batches += 1
    rate = job.schedule.rate(progress.step)
    norm = update(job, learner, loss.detach(), rate)
    progress.step += 1
    watch.record_step(progress, rate, loss, norm)


def _validate(job: SeriesJob, learner: Learner[SeriesHead], watch: Watch, stop: Callable[[], bool]) -> None:
    of = job.validation
    if not len(of):  # nothing to compare epochs by
        keep_last(job, learner, watch)
        return
    scored = job.scored(of)
    probabilities = sigmoid(of.logits + corrections(learner.net, of, job.device))[scored]
    table = prediction_table(job.cache, of.lines[scored], probabilities, job.run.data.classes)
    known = at_level(from_table(table), job.run.data.label_level)
    keep_if_better(job, learner, watch, known.labels, known.probabilities)
    if stop():
        raise Stopped

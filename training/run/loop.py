"""The training loop: take a run from its current state to its last evaluation."""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeVar

import numpy as np

from training.data.batches import Batch
from training.data.copies import on_device
from training.errors import RunError
from training.model.draws import DRAWN
from training.model.network import FusionNet
from training.run.checkpoints import Checkpoint, Progress, list_checkpoints
from training.run.config import TrainConfig
from training.run.device import memory_error_explained, missing_determinism_explained, single_values_explained
from training.run.distributed import Processes
from training.run.inference import Stopped
from training.run.runs import Run
from training.run.setup import Job, Learner, N, Setup, prepare, set_up, start
from training.run.step import seed_dropout, train_step
from training.run.task import Task
from training.run.validation import validate
from training.run.watch import Watch

SHOWN = 16  # images of the first batch to log to TensorBoard

J = TypeVar("J", bound=Job)
Part = Callable[[J, Learner[N], Watch, Callable[[], bool]], None]


def fit(task: Task) -> None:
    """Train a run from its current state to the end: all its epochs, or until validation no longer improves.

    Its best weights are then in `weights.safetensors`. If it is killed at any point and called again, the result is the
    same.

    Raises:
        Stopped: if asked to stop by SIGTERM or Ctrl-C, after writing a checkpoint.
        RunError: if a loss or gradient is not finite, the GPU runs out of memory, or the checkpoint is from another
            run.
    """
    setup = set_up(task)
    learner = start(setup)
    check_same_count(task.run, task.processes)
    with errors_explained(setup):
        train_to_end(setup, learner, train_epoch, validate)


def check_same_count(run: Run, processes: Processes) -> None:
    """Raise a RunError if a run that has taken steps would continue with a different number of processes.

    Images, order and augmentation would be the same. But each process has separate dropout and batch norm, and
    gradients would be summed in a different order, so the result would differ from that of an uninterrupted run.
    """
    begun = run.environment.get("processes", processes.count)
    if begun != processes.count and list_checkpoints(run):
        raise RunError(
            f"{run.path}: was trained with {begun} processes, and the result would differ with {processes.count}; "
            f"give --nproc-per-node {begun} (1: without torchrun), or start a new run"
        )


def train_to_end(setup: J, learner: Learner[N], train: Part[J, N], validate: Part[J, N]) -> None:
    """Train and validate epoch by epoch, with a checkpoint after each, until the run is finished or asked to stop."""
    total, loggers = setup.schedule.total_steps, setup.runtime.loggers
    watch = Watch(setup, learner.progress, total, loggers=loggers, num_validation=setup.num_validation)
    with asked_to_stop() as stop, watch:
        while not finished(learner.progress, setup.config):
            try:
                train(setup, learner, watch, stop)
                validate(setup, learner, watch, stop)
            except Stopped:
                save_progress(setup, learner, watch)
                raise
            learner.progress.epoch += 1
            learner.progress.batches = 0
            save_progress(setup, learner, watch)
    setup.processes.wait()  # until the weights are written, for all to read


def finished(progress: Progress, config: TrainConfig) -> bool:
    """Return whether all epochs are done, or the last `patience_epochs` brought no improvement."""
    waited = progress.epoch - 1 - progress.best_epoch
    return progress.epoch >= config.epochs or waited >= config.patience_epochs


def train_epoch(setup: Setup, learner: Learner[FusionNet], watch: Watch, stop: Callable[[], bool]) -> None:
    """Train the rest of the current epoch."""
    progress, every = learner.progress, setup.runtime.checkpoint_every
    model = prepare(setup, learner)
    if progress.step == 0 and watch.shows_images:
        watch.show("first batch, augmented", first_images(setup, progress))
    batches = epoch_batches(setup, progress)
    while progress.batches < setup.schedule.batches:
        train_step(setup, learner, model, batches, watch)
        if progress.step % setup.runtime.log_every == 0:
            watch.log_pending()
        if setup.processes.any(stop()):
            raise Stopped
        if every and progress.step % every == 0:
            save_progress(setup, learner, watch)
    watch.log_pending()


def epoch_batches(setup: Setup, progress: Progress) -> Generator[tuple[Batch, np.ndarray], None, None]:
    """Yield the remaining batches of the current epoch on the device, with their keys (B,) uint64 on the host."""
    keys: deque[np.ndarray] = deque()
    batches = setup.train.epoch(
        setup.config.seed,
        progress.epoch,
        skip_batches=progress.batches,
        rank=setup.processes.rank,
        world=setup.processes.count,
        batches=setup.schedule.batches,
    )

    def noted() -> Iterator[Batch]:
        for batch in batches:
            # Random numbers are drawn on the host; copied, since the ring reuses its memory.
            keys.append(batch.keys.numpy().view(np.uint64).copy())
            yield batch

    for batch in on_device(noted(), setup.device):
        yield batch, keys.popleft()


def first_images(setup: Setup, progress: Progress) -> np.ndarray:
    """Return the first images of this process's first batch after augmentation, (n, C, S, S) uint8, for display.

    Only the first three channels are returned, if there are more. The batch is read, and its random numbers are drawn,
    again for training.
    """
    seed_dropout(setup.config.seed, 0, setup.processes.rank, setup.device)
    with closing(epoch_batches(setup, progress)) as batches:
        batch, keys = next(batches)
        images = setup.augment(batch.images, keys, progress.epoch, batch.drawn[:, :DRAWN])[:SHOWN].float()
    grey = images * setup.augment.normalise.std + setup.augment.normalise.mean
    pixels = (grey * 255).round().clamp(0, 255).byte().cpu().numpy()
    return pixels[:, : 3 if pixels.shape[1] >= 3 else 1]


def save_progress(setup: Job, learner: Learner[Any], watch: Watch) -> None:
    """Start writing a checkpoint, after checking that all losses so far are finite.

    The log is written with it, and so are the weights if they are the best so far; all are written by the time that the
    watch ends.
    """
    watch.log_pending()
    if setup.processes.writes:
        checkpoint = Checkpoint(
            learner.net.state_dict(),
            learner.optimizer.state_dict(),
            learner.ema.state_dict() if learner.ema is not None else None,
            learner.progress,
        )
        watch.save(checkpoint, setup.runtime.keep_checkpoints, best=learner.improved)
    learner.improved = False


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM and the first Ctrl-C, and yield a function that returns whether one was received."""
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def errors_explained(setup: Setup) -> Iterator[None]:
    """Turn errors that occur only within a step into one-line errors that say what to do."""
    config = setup.config
    with ExitStack() as explained:
        explained.enter_context(memory_error_explained(config, setup.run.path))
        explained.enter_context(missing_determinism_explained(config))
        explained.enter_context(single_values_explained(config))
        yield

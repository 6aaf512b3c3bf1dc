"""The training loop: a run from where it stands to its last evaluation."""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeVar

import numpy as np

from training.data.batches import Batch
from training.data.cache import Cache
from training.data.copies import on_device
from training.errors import RunError
from training.model.draws import DRAWN
from training.model.network import FusionNet
from training.run.checkpoints import Checkpoint, Progress, list_checkpoints
from training.run.config import Runtime, TrainConfig
from training.run.device import memory_error_explained, missing_determinism_explained, single_values_explained
from training.run.distributed import Processes
from training.run.inference import Stopped
from training.run.runs import Run
from training.run.setup import Job, Learner, N, Setup, prepare, set_up, start
from training.run.step import seed_dropout, train_step
from training.run.validation import validate
from training.run.watch import Watch

SHOWN = 16  # images of the first batch, in TensorBoard

J = TypeVar("J", bound=Job)
Part = Callable[[J, Learner[N], Watch, Callable[[], bool]], None]


def fit(run: Run, cache: Cache, runtime: Runtime, processes: Processes) -> None:
    """Train a run from where it stands to its end: all its epochs, or until validation no longer improves.

    Its best weights are then in `weights.safetensors`. Killed anywhere and called again, it ends with the same.

    Raises:
        Stopped: asked to stop by SIGTERM or Ctrl-C; a checkpoint was written.
        RunError: a loss or gradient was not finite, the GPU's memory did not suffice, or the checkpoint is of
            another run.
    """
    setup = set_up(run, cache, runtime, processes)
    learner = start(setup)
    check_same_count(run, processes)
    with errors_explained(setup):
        to_the_end(setup, learner, train_epoch, validate)


def check_same_count(run: Run, processes: Processes) -> None:
    """Raise a RunError where a run that has taken steps would go on with another number of processes.

    Images, order and augmentation would be the same. But each process has dropout and batch norm of its own, and
    gradients would be added in another order, so the run would end otherwise than undisturbed.
    """
    begun = run.environment.get("processes", processes.count)
    if begun != processes.count and list_checkpoints(run):
        raise RunError(
            f"{run.path}: was trained with {begun} processes, and the result would differ with {processes.count}; "
            f"give --nproc-per-node {begun} (1: without torchrun), or start a new run"
        )


def to_the_end(setup: J, learner: Learner[N], train: Part[J, N], validate: Part[J, N]) -> None:
    """Train and validate epoch by epoch, with a checkpoint after each, until the run is finished or asked to stop."""
    processes = setup.processes
    total, loggers = setup.schedule.total_steps, setup.runtime.loggers
    looked_at = setup.num_validation
    watch = Watch(setup.run, setup.cache, processes, learner.progress, total, loggers=loggers, num_validation=looked_at)
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
    processes.wait()  # whoever reads the weights next finds them written


def finished(progress: Progress, config: TrainConfig) -> bool:
    """Whether all epochs are done, or the last `patience_epochs` were no better than one before them."""
    waited = progress.epoch - 1 - progress.best_epoch
    return progress.epoch >= config.epochs or waited >= config.patience_epochs


def train_epoch(setup: Setup, learner: Learner[FusionNet], watch: Watch, stop: Callable[[], bool]) -> None:
    """Train the rest of the epoch under way."""
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
    """Yield what is left of the epoch under way: batches on the device, and their keys (B,) uint64 on the host."""
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
            # Random numbers are drawn on the host; the ring takes its memory back.
            keys.append(batch.keys.numpy().view(np.uint64).copy())
            yield batch

    for batch in on_device(noted(), setup.device):
        yield batch, keys.popleft()


def first_images(setup: Setup, progress: Progress) -> np.ndarray:
    """Return the first images of this process's first batch as augmentation leaves them, (n, C, S, S) uint8.

    Of more than three channels the first three are shown. The batch is read once more when it is trained on, and its
    random numbers are drawn again.
    """
    seed_dropout(setup.config.seed, 0, setup.processes.rank, setup.device)
    with closing(epoch_batches(setup, progress)) as batches:
        batch, keys = next(batches)
        images = setup.augment(batch.images, keys, progress.epoch, batch.drawn[:, :DRAWN])[:SHOWN].float()
    grey = images * setup.augment.normalise.std + setup.augment.normalise.mean
    pixels = (grey * 255).round().clamp(0, 255).byte().cpu().numpy()
    return pixels[:, : 3 if pixels.shape[1] >= 3 else 1]


def save_progress(setup: Job, learner: Learner[Any], watch: Watch) -> None:
    """Begin to write a checkpoint, once the losses up to here are known to be finite.

    The log and, where they are better than any before, the weights are written with it: when the watch ends, at the
    latest.
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
    """Turn SIGTERM and the first Ctrl-C into a question that the loop asks after each step."""
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
    """Say in one line what a user can do about an error that comes up only within a step."""
    config = setup.config
    with ExitStack() as explained:
        explained.enter_context(memory_error_explained(config, setup.run.path))
        explained.enter_context(missing_determinism_explained(config))
        explained.enter_context(single_values_explained(config))
        yield

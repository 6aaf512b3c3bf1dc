"""The training loop: a run from where it stands to its last evaluation."""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.data.batches import Batch
from training.data.cache import Cache
from training.data.copies import on_device
from training.data.hashing import splitmix64
from training.errors import RunError
from training.model.draws import DRAWN
from training.model.network import FusionNet
from training.run.checkpoints import Checkpoint, Progress, list_checkpoints
from training.run.config import Runtime, TrainConfig
from training.run.device import missing_determinism_explained, single_values_explained
from training.run.distributed import Processes
from training.run.inference import Stopped, predict_slices
from training.run.inputs import make_inputs
from training.run.runs import Run, prediction_table
from training.run.setup import Job, Learner, N, Setup, compiled, prepare, set_up, start
from training.run.watch import Watch
from training.scores.metrics import score
from training.scores.pooling import at_level
from training.scores.predictions import from_table

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
            f"{run.path}: has trained with {begun} processes, and here are {processes.count}, with which it would end "
            f"otherwise; give --nproc-per-node {begun} (1: without torchrun), or start a new run"
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
    seed_dropout(setup.config.seed, 0, setup.processes.rank)
    with closing(epoch_batches(setup, progress)) as batches:
        batch, keys = next(batches)
        images = setup.augment(batch.images, keys, progress.epoch, batch.drawn[:, :DRAWN])[:SHOWN].float()
    grey = images * setup.augment.normalise.std + setup.augment.normalise.mean
    pixels = (grey * 255).round().clamp(0, 255).byte().cpu().numpy()
    return pixels[:, : 3 if pixels.shape[1] >= 3 else 1]


def train_step(
    setup: Setup,
    learner: Learner[FusionNet],
    model: nn.Module,
    batches: Iterator[tuple[Batch, np.ndarray]],
    watch: Watch,
) -> None:
    """Take as many batches as a step has, and update the weights once. Nothing here waits for the device."""
    schedule, progress = setup.schedule, learner.progress
    loss = torch.zeros((), device=setup.device)
    ended = False
    while not ended:
        batch, keys = next(batches)
        ended = schedule.ends_step(progress.batches)
        watch.saw_batch(batch.lines, schedule.images_in_batch(progress.batches))
        loss += backward(setup, learner, model, batch, keys, synchronise=ended)
        progress.batches += 1
    rate, loss = schedule.rate(progress.step), setup.processes.add_up(loss)
    norm = update(setup, learner, loss, rate)
    progress.step += 1
    watch.saw_step(progress, rate, loss, norm)


def backward(
    setup: Setup, learner: Learner[FusionNet], model: nn.Module, batch: Batch, keys: np.ndarray, *, synchronise: bool
) -> Tensor:
    """Add a batch's share to the gradient of its step; return this process's share of the step's loss."""
    number = learner.progress.epoch * setup.schedule.batches + learner.progress.batches
    seed_dropout(setup.config.seed, number, setup.processes.rank)
    return learn(setup, learner, model, make_inputs(setup, batch, keys, number), synchronise=synchronise)


def learn(
    setup: Setup,
    learner: Learner[FusionNet],
    model: nn.Module,
    inputs: tuple[Tensor, Tensor, Tensor],
    *,
    synchronise: bool,
) -> Tensor:
    """As `backward`, of what `make_inputs` gave."""
    images, z_norm, labels = inputs
    later = model.no_sync() if isinstance(model, DistributedDataParallel) and not synchronise else nullcontext()
    with later:
        with autocast(setup.config, setup.device):
            logits = model(images, z_norm)
        own = setup.loss(logits, labels, setup.class_weights).sum()
        share = own / setup.schedule.images_in_step(learner.progress.batches)
        # Over the processes DistributedDataParallel takes the gradients' mean; we want their sum.
        (share * setup.processes.count).backward()
    return share.detach()


def update(setup: Job, learner: Learner[Any], loss: Tensor, rate: float) -> Tensor:
    """Take one step of the optimizer and return the gradient's norm before clipping.

    From the first loss or gradient on that is not finite, the device skips the step, and so every later one: the
    host may learn of it many steps later and still has the weights from before.
    """
    optimizer = learner.optimizer
    for group in optimizer.param_groups:
        group["lr"] = rate
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, setup.config.gradient_clip)
    learner.broken = torch.maximum(learner.broken, (~torch.isfinite(loss + norm)).float())
    optimizer.found_inf = learner.broken  # type: ignore[attr-defined]  # read by fused AdamW, as GradScaler sets it
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        average(learner.ema, learner.net, setup.config.ema_decay)
    return norm


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the averaged weights toward the network's by 1 - decay, in place; the norms' statistics are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
    if averaged := list(ema.buffers()):  # a network without norms has none
        torch._foreach_copy_(averaged, list(net.buffers()))


def validate(setup: Setup, learner: Learner[FusionNet], watch: Watch, stop: Callable[[], bool]) -> None:
    """Score the epoch on validation, log it, and keep the weights if none were better.

    Without a validation side nothing can be better or worse: the weights kept are the last epoch's.
    """
    share_statistics(setup, learner)
    if not setup.num_validation:
        keep_last(setup, learner, watch)
        return
    lines, probabilities = predict_slices(
        compiled(learner.evaluated, setup.config),
        setup.validation,
        setup.num_validation,
        setup.augment.normalise,
        setup.processes,
        bf16=setup.config.bf16,
        title="validation",
        asked_to_stop=stop,
    )
    table = prediction_table(setup.cache, lines, probabilities, setup.run.data.classes)
    known = at_level(from_table(table), setup.run.data.label_level)
    keep_if_better(setup, learner, watch, known.labels, known.probabilities)


def keep_if_better(
    setup: Job, learner: Learner[Any], watch: Watch, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Log the score of an epoch's predictions on validation, (n, K) each, and keep its weights if none were better."""
    data = setup.run.data
    loss = score(labels, probabilities, data.classes, np.array(data.class_weights))["weighted_log_loss"]
    progress = learner.progress
    if loss is None:
        keep_last(setup, learner, watch)
        return
    watch.saw_validation(progress, loss)
    watch.say_epoch(progress, loss)
    if loss < progress.best_loss:
        progress.best_loss, progress.best_epoch = loss, progress.epoch
        learner.improved = True


def keep_last(setup: Job, learner: Learner[Any], watch: Watch) -> None:
    """Keep an epoch's weights where nothing on validation says how good they are."""
    watch.say_epoch(learner.progress, None)
    learner.progress.best_epoch = learner.progress.epoch
    learner.improved = True


def share_statistics(setup: Setup, learner: Learner[FusionNet]) -> None:
    """Give all processes the norms' statistics of the first, for each has seen its own part of the last batch.

    A training step does the same before it, as DistributedDataParallel has it.
    """
    setup.processes.agree(learner.net.buffers())
    if learner.ema is not None:
        setup.processes.agree(learner.ema.buffers())


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


def seed_dropout(seed: int, number: int, rank: int) -> None:
    """Set torch's generators for one batch, so that dropout depends on where the run is and not on how it got there.

    So does augmentation of the user's own that draws from them.
    """
    state = np.array([seed], np.uint64)
    for value in (number, rank):
        state = splitmix64(state) ^ np.uint64(value)
    torch.manual_seed(int(splitmix64(state)[0]))


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    """Compute in bf16 where the settings and the device allow; a CPU gains nothing from it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.bf16 and device.type == "cuda")


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
    """Say in one line what a user can mend, of what comes up in a step only."""
    config = setup.config
    with memory_error_explained(setup), missing_determinism_explained(config), single_values_explained(config):
        yield


@contextmanager
def memory_error_explained(setup: Setup) -> Iterator[None]:
    """Say which batch size the GPU's memory did not suffice for, and what to set."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        config = setup.config
        smaller, more = max(1, config.batch_size // 2), config.accumulation * 2
        way_out = f"start anew with --batch-size {smaller} --set accumulation={more}, for steps of the same size"
        raise RunError(
            f"{setup.run.path}: out of GPU memory at a batch size of {config.batch_size} with {config.model} at "
            f"{config.size_px} px; {way_out}"
        ) from error

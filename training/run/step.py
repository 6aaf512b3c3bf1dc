"""One training step: from batches to gradients to weights, without waiting for the device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.data.batches import Batch
from training.data.hashing import splitmix64
from training.model.network import FusionNet
from training.run.config import TrainConfig
from training.run.inputs import make_inputs
from training.run.setup import Job, Learner, Setup
from training.run.watch import Watch


def train_step(
    setup: Setup,
    learner: Learner[FusionNet],
    model: nn.Module,
    batches: Iterator[tuple[Batch, np.ndarray]],
    watch: Watch,
) -> None:
    """Process the batches of one step and update the weights once, without waiting for the device."""
    schedule, progress = setup.schedule, learner.progress
    loss = torch.zeros((), device=setup.device)
    ended = False
    while not ended:
        keyed = next(batches)
        ended = schedule.ends_step(progress.batches)
        watch.record_batch(keyed[0].lines, schedule.images_in_batch(progress.batches))
        loss += backward(setup, learner, model, keyed, synchronise=ended)
        progress.batches += 1
    rate, loss = schedule.rate(progress.step), setup.processes.sum(loss)
    norm = update(setup, learner, loss, rate)
    progress.step += 1
    watch.record_step(progress, rate, loss, norm)


def backward(
    setup: Setup, learner: Learner[FusionNet], model: nn.Module, keyed: tuple[Batch, np.ndarray], *, synchronise: bool
) -> Tensor:
    """Add a batch's gradient to that of its step; return this process's share of the step's loss."""
    number = learner.progress.epoch * setup.schedule.batches + learner.progress.batches
    seed_dropout(setup.config.seed, number, setup.processes.rank, setup.device)
    return learn(setup, learner, model, make_inputs(setup, *keyed, number), synchronise=synchronise)


def learn(
    setup: Setup,
    learner: Learner[FusionNet],
    model: nn.Module,
    inputs: tuple[Tensor, Tensor, Tensor],
    *,
    synchronise: bool,
) -> Tensor:
    """As `backward`, for the inputs returned by `make_inputs`."""
    images, z_norm, labels = inputs
    later = model.no_sync() if isinstance(model, DistributedDataParallel) and not synchronise else nullcontext()
    with later:
        with autocast(setup.config, setup.device):
            logits = model(images, z_norm)
        own = setup.loss(logits, labels, setup.class_weights).sum()
        share = own / setup.schedule.images_in_step(learner.progress.batches)
        # DistributedDataParallel averages gradients over the processes; we want their sum.
        (share * setup.processes.count).backward()
    return share.detach()


def update(setup: Job, learner: Learner[Any], loss: Tensor, rate: float) -> Tensor:
    """Take one optimizer step and return the norm of the gradient before clipping.

    From the first non-finite loss or gradient, the device skips that step and all later ones: the host may notice it
    many steps later, and still has the weights from before it.
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
    """Move the averaged weights towards the network's by 1 - decay, in place, and copy the statistics of norms."""
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
    averaged, current = list(ema.buffers()), list(net.buffers())
    # One call per dtype: with mixed dtypes a GPU copies tensors one by one, each in a separate kernel.
    for dtype in {buffer.dtype for buffer in averaged}:
        which = [i for i, buffer in enumerate(averaged) if buffer.dtype == dtype]
        torch._foreach_copy_([averaged[i] for i in which], [current[i] for i in which])


def seed_dropout(seed: int, number: int, rank: int, device: torch.device) -> None:
    """Seed torch's generators for one batch, so that dropout depends on the position in the run, not on its history.

    The same is then true of the user's own augmentation if it draws from them. torch.manual_seed is not used, because
    it records a stack trace for every unused kind of device, which takes 0.2 ms or more.

    Args:
        seed: of the run.
        number: number of the batch in the run, from 0.
        rank: of this process.
        device: device whose generator is seeded, in addition to the CPU's.
    """
    state = np.array([seed], np.uint64)
    for value in (number, rank):
        state = splitmix64(state) ^ np.uint64(value)
    value = int(splitmix64(state)[0])
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    """Return a context that computes in bf16 if the settings ask for it and the device is a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.bf16 and device.type == "cuda")

"""Set up a run: its streams, its network and its optimizer."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.data.cache import Cache
from training.data.neighbours import choose_context, order_series
from training.data.stream import Stream
from training.errors import ConfigError, RunError
from training.model.augment import Augment
from training.model.loss import Loss, choose_loss
from training.model.network import FusionNet, build_model, load_run_weights
from training.model.weights import load_own
from training.run.checkpoints import Checkpoint, Progress, load_checkpoint
from training.run.config import TrainConfig
from training.run.device import configure_device
from training.run.distributed import Processes
from training.run.drawing import drawing
from training.run.runs import Run, digest
from training.run.schedule import Schedule
from training.run.streams import lines_of, open_evaluation, open_stream
from training.run.task import Task

# PyTorch's names for the matrices and kernels of linear layers, convolutions and attention.
LAYER_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Job(Task):
    """The constant parts of training any kind of run.

    Attributes:
        num_validation: number of slices, or of series for a head, evaluated after each epoch.
    """

    schedule: Schedule
    class_weights: Tensor
    num_validation: int


@dataclass(frozen=True)
class Setup(Job):
    """The constant parts of training a run on images."""

    train: Stream
    validation: Stream
    augment: Augment
    loss: Loss


@dataclass
class Learner(Generic[N]):
    """The parts of a run that training changes.

    Attributes:
        ema: the network with averaged weights, if the run has one; it is then the one that is evaluated and saved.
        broken: 0, or 1 from the first step with a non-finite loss or gradient; float32 scalar on the device.
        improved: whether the weights are the best so far, and are to be saved with the next checkpoint.
    """

    net: N
    ema: N | None
    optimizer: torch.optim.Optimizer
    broken: Tensor
    progress: Progress
    improved: bool = False

    @property
    def evaluated(self) -> N:
        return self.ema or self.net


def set_up(task: Task) -> Setup:
    """Open the streams of a run's slices, and move everything that training needs to the device."""
    run, config, device = task.run, task.config, task.device
    if config.sync_batch_norm and device.type == "cpu":
        raise ConfigError("sync_batch_norm: works only on GPUs; leave it off")
    configure_device(config, device)
    train, validation = (lines_of(run, task.cache, subset) for subset in ("train", "validation"))
    schedule = Schedule(len(train), config)
    draw = drawing(config, schedule, task.processes, (len(run.channels), config.size_px, config.size_px))
    return Setup(
        **vars(task),
        schedule=schedule,
        train=open_stream(task, train, draw),
        validation=open_evaluation(task, validation),
        num_validation=len(validation),
        augment=Augment(config, *run.mean_std, device),
        loss=choose_loss(config),
        class_weights=torch.tensor(run.data.class_weights, device=device),
    )


def check_context(config: TrainConfig, cache: Cache) -> tuple[int, ...]:
    """Return the window of each channel of the network's input, for a run on a cache.

    Raises:
        ConfigError: if the cache does not have one of the windows.
        CacheError: if neighbours are requested but no slice has a z_mm.
    """
    names = [window.name for window in cache.windows]
    context = choose_context(config.context, config.context_windows, names)
    if context is None:
        return tuple(range(len(names)))
    order_series(cache)
    return context.channels(len(names))


def start(setup: Setup) -> Learner[FusionNet]:
    """Build the network and its optimizer, new or restored from the newest checkpoint."""
    checkpoint = load_checkpoint(setup.run)
    config = setup.config if checkpoint is None else dataclasses.replace(setup.config, weights="none")
    net = build_model(config, len(setup.run.data.classes), setup.run.channels)
    net = net.to(setup.device).to(memory_format=torch.channels_last)
    if config.sync_batch_norm and setup.processes.count > 1:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    ema = copy_of(net) if config.ema_decay else None
    return restore_learner(net, ema, config, checkpoint)


def restore_learner(net: N, ema: N | None, config: TrainConfig, checkpoint: Checkpoint | None) -> Learner[N]:
    """Return a learner for a network, restored from a checkpoint if there is one."""
    broken = torch.zeros((), device=next(net.parameters()).device)
    learner = Learner(net, ema, make_optimizer(net, config), broken, Progress())
    if checkpoint is not None:
        try:
            load_own(net, checkpoint.model)
            learner.optimizer.load_state_dict(dict(checkpoint.optimizer))
            if ema is not None and checkpoint.ema is not None:
                load_own(ema, checkpoint.ema)
        except Exception as error:  # each part of a state dict raises its own errors
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"the newest checkpoint does not fit this network ({reason}); remove it to continue"
            ) from error
        learner.progress = checkpoint.progress
    return learner


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build a fused AdamW that decays only the weights of layers.

    Norms and biases have one dimension; position tables, class tokens and layer scales have more, but they do not
    multiply features, so pulling them towards 0 would not regularise anything.

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """
    decayed, free = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in net.named_parameters():
        of_layer = name.rpartition(".")[2] in LAYER_WEIGHTS and parameter.dim() > 1
        (decayed if of_layer else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def prepare(setup: Setup, learner: Learner[FusionNet]) -> nn.Module:
    """Prepare the network for an epoch: freeze or unfreeze its backbone, and wrap it for several processes."""
    net, frozen = learner.net, learner.progress.epoch < setup.config.frozen_epochs
    net.train()
    net.backbone.train(not frozen)
    net.backbone.requires_grad_(not frozen)
    ready = compiled(net, setup.config)
    if setup.processes.count == 1 and setup.processes.control is None:
        return ready
    joined = DistributedDataParallel(ready, device_ids=[setup.device] if setup.device.type == "cuda" else None)
    fix_buckets(joined, net, setup)
    return joined


def fix_buckets(joined: nn.Module, net: nn.Module, setup: Setup) -> None:
    """Take one backward pass over blank images, which only fixes the bucket layout for exchanging gradients.

    DistributedDataParallel rebuilds its buckets after its first backward pass, and the layout determines the order in
    which the gradients of several processes are summed. A process resumed within an epoch would otherwise sum its first
    gradients in a different order from an uninterrupted one, and end with different weights.
    """
    statistics = [buffer.clone() for buffer in net.buffers()]
    size, channels = setup.config.size_px, len(setup.run.channels)
    images = torch.zeros(2, channels, size, size, device=setup.device).contiguous(memory_format=torch.channels_last)
    with torch.compiler.set_stance("force_eager"):  # code compiled for two images would be used only once
        joined(images, torch.zeros(2, device=setup.device)).sum().backward()
    net.zero_grad(set_to_none=True)
    for buffer, before in zip(net.buffers(), statistics, strict=True):
        buffer.copy_(before)


def compiled(net: nn.Module, config: TrainConfig) -> nn.Module:
    """Return the network, compiled if the settings ask for it.

    Each batch size is compiled separately: with dynamic shapes, the second size would replace the code of the first,
    and a resumed process would run different code from an uninterrupted one.
    """
    if not config.compile:
        return net
    ready: nn.Module = torch.compile(net, dynamic=False)  # type: ignore[assignment]
    return ready


def copy_of(net: FusionNet) -> FusionNet:
    """Return a copy of a network, without gradients."""
    return copy.deepcopy(net).requires_grad_(requires_grad=False)


def load_slice_network(run: Run, processes: Processes) -> FusionNet:
    """Build the slice network of a run with its best weights, ready to predict.

    Raises:
        RunError: if the run has no weights yet, they cannot be read, or the slice weights in a head's folder are not
            those that it was trained on.
    """
    configure_device(run.config, processes.device)
    if run.has_head and digest(run.slice_weights) != run.data.base_weights:
        raise RunError(f"{run.slice_weights}: not the weights that the head was trained on; restore the file")
    net = load_run_weights(run.config, len(run.data.classes), run.slice_weights, run.channels)
    return net.to(processes.device).to(memory_format=torch.channels_last).eval()

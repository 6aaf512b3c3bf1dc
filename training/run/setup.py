"""Set up what a run works with: its streams, its network, its optimizer."""

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
from training.run.config import Runtime, TrainConfig
from training.run.device import configure_device
from training.run.distributed import Processes
from training.run.drawing import drawing
from training.run.runs import Run, digest
from training.run.schedule import Schedule
from training.run.streams import lines_of, open_evaluation, open_stream

# What PyTorch calls the matrices and kernels of linear layers, convolutions and attention.
LAYER_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Job:
    """What every kind of run works with and does not change.

    Attributes:
        num_validation: what is evaluated after an epoch: slices, or series.
    """

    run: Run
    cache: Cache
    runtime: Runtime
    processes: Processes
    schedule: Schedule
    class_weights: Tensor
    num_validation: int

    @property
    def config(self) -> TrainConfig:
        return self.run.config

    @property
    def device(self) -> torch.device:
        return self.processes.device


@dataclass(frozen=True)
class Setup(Job):
    """What a run on images works with besides."""

    train: Stream
    validation: Stream
    augment: Augment
    loss: Loss


@dataclass
class Learner(Generic[N]):
    """What training changes.

    Attributes:
        ema: the network of averaged weights, where the run keeps one; it is then what is evaluated and kept.
        broken: 0, or 1 from the first step on whose loss or gradient was not finite; float32 scalar on the device.
        improved: whether the weights are better than any kept, and are to be kept with the next checkpoint.
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


def set_up(run: Run, cache: Cache, runtime: Runtime, processes: Processes) -> Setup:
    """Open the streams of a run's slices and bring to the device what training needs there."""
    config = run.config
    if config.sync_batch_norm and processes.device.type == "cpu":
        raise ConfigError("sync_batch_norm: works only on GPUs; leave it off")
    configure_device(config, processes.device)
    train, validation = (lines_of(run, cache, subset) for subset in ("train", "validation"))
    schedule = Schedule(len(train), config)
    draw = drawing(config, schedule, processes, (len(run.channels), config.size_px, config.size_px))
    return Setup(
        run=run,
        cache=cache,
        runtime=runtime,
        processes=processes,
        schedule=schedule,
        train=open_stream(run, cache, train, runtime, processes, draw=draw),
        validation=open_evaluation(run, cache, validation, runtime, processes),
        num_validation=len(validation),
        augment=Augment(config, *run.mean_std, processes.device),
        loss=choose_loss(config),
        class_weights=torch.tensor(run.data.class_weights, device=processes.device),
    )


def check_context(config: TrainConfig, cache: Cache) -> tuple[int, ...]:
    """Return which window each channel of the network's input will show, for a run on a cache.

    Raises:
        ConfigError: a window that the cache does not have. CacheError: neighbours are wanted and no slice has a z_mm.
    """
    names = [window.name for window in cache.windows]
    context = choose_context(config.context, config.context_windows, names)
    if context is None:
        return tuple(range(len(names)))
    order_series(cache)
    return context.channels(len(names))


def start(setup: Setup) -> Learner[FusionNet]:
    """Make the network and its optimizer: fresh, or as the newest checkpoint has them."""
    checkpoint = load_checkpoint(setup.run)
    config = setup.config if checkpoint is None else dataclasses.replace(setup.config, weights="none")
    net = build_model(config, len(setup.run.data.classes), setup.run.channels)
    net = net.to(setup.device).to(memory_format=torch.channels_last)
    if config.sync_batch_norm and setup.processes.count > 1:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    ema = copy_of(net) if config.ema_decay else None
    return learner_at(net, ema, config, checkpoint)


def learner_at(net: N, ema: N | None, config: TrainConfig, checkpoint: Checkpoint | None) -> Learner[N]:
    """Return a network and its optimizer as a checkpoint has them; fresh where there is none."""
    broken = torch.zeros((), device=next(net.parameters()).device)
    learner = Learner(net, ema, make_optimizer(net, config), broken, Progress())
    if checkpoint is not None:
        try:
            load_own(net, checkpoint.model)
            learner.optimizer.load_state_dict(dict(checkpoint.optimizer))
            if ema is not None and checkpoint.ema is not None:
                load_own(ema, checkpoint.ema)
        except Exception as error:  # every part of a state dict has an error of its own
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"the newest checkpoint does not fit this network ({reason}); remove it to continue"
            ) from error
        learner.progress = checkpoint.progress
    return learner


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make a fused AdamW that decays the weights of layers, and nothing else.

    Norms and biases have one dimension; position tables, class tokens and layer scales have more, but they do not
    multiply features, so to pull them toward 0 regularises nothing.

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """
    decayed, free = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in net.named_parameters():
        of_layer = name.rpartition(".")[2] in LAYER_WEIGHTS and parameter.dim() > 1
        (decayed if of_layer else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def prepare(setup: Setup, learner: Learner[FusionNet]) -> nn.Module:
    """Make the network ready for an epoch: its backbone held or free, and joined with the other processes' networks."""
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
    """Take one backward pass over blank images, which changes nothing but the layout of the exchange of gradients.

    DistributedDataParallel lays its buckets out anew after its first backward pass, and the layout decides in which
    order four processes' gradients are added. A process that is resumed within an epoch would add its first ones in
    another order than one that was not, and end with other weights.
    """
    statistics = [buffer.clone() for buffer in net.buffers()]
    size, channels = setup.config.size_px, len(setup.run.channels)
    images = torch.zeros(2, channels, size, size, device=setup.device).contiguous(memory_format=torch.channels_last)
    with torch.compiler.set_stance("force_eager"):  # code compiled for two images would serve this once
        joined(images, torch.zeros(2, device=setup.device)).sum().backward()
    net.zero_grad(set_to_none=True)
    for buffer, before in zip(net.buffers(), statistics, strict=True):
        buffer.copy_(before)


def compiled(net: nn.Module, config: TrainConfig) -> nn.Module:
    """Return the network as the settings have it run.

    Each batch size is compiled for itself: with dynamic shapes the second size would replace the first one's code, and
    a process that is resumed would compute with other code than one that was not.
    """
    if not config.compile:
        return net
    ready: nn.Module = torch.compile(net, dynamic=False)  # type: ignore[assignment]
    return ready


def copy_of(net: FusionNet) -> FusionNet:
    """Return a copy of a network, without gradients."""
    return copy.deepcopy(net).requires_grad_(requires_grad=False)


def load_slice_network(run: Run, processes: Processes) -> FusionNet:
    """Build the network of a run that looks at slices, with its best weights, ready to predict.

    Raises:
        RunError: the run has no weights yet, or they cannot be read, or a head's are not those of its slice model.
    """
    configure_device(run.config, processes.device)
    if run.has_head and digest(run.slice_weights) != run.data.base_weights:
        raise RunError(f"{run.slice_weights}: not the weights that the head was trained on; restore the file")
    net = load_run_weights(run.config, len(run.data.classes), run.slice_weights, run.channels)
    return net.to(processes.device).to(memory_format=torch.channels_last).eval()

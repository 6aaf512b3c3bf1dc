"""This file measures a training step on a GPU: the model alone, with augmentation, and the whole run from a cache.

    python -m benchmarks.step --cache cache.zarr [--model resnet50 --size 224 --batch-size 256]

Prints images/s of (a) the model on one resident batch, (b) the same with augmentation and mixup, (c) steps fed from
the cache, with ratios to (a), the share of (b) that augmentation takes, evaluation with TTA against forward passes
alone, and peak memory. Without a GPU it says so and ends.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import click
import torch
import torchvision

from training.config import Machine, TrainConfig
from training.distributed import Processes, join_processes
from training.inference import look, views
from training.job import begin
from training.loop import epoch_batches, make_inputs, train_step
from training.loss import image_losses
from training.setup import Learner, Setup, prepare, set_up, start
from training.watch import Watch


@click.command()
@click.option("--cache", type=click.Path(path_type=Path, exists=True), required=True, help="Larger than a few batches.")
@click.option("--model", default="resnet50", show_default=True)
@click.option("--size", "size_px", default=224, show_default=True)
@click.option("--batch-size", default=256, show_default=True)
@click.option("--steps", default=100, show_default=True, help="Measured, after ten that warm up.")
@click.option("--input-threads", default=3, show_default=True)
@click.option("--compile", "compiled", is_flag=True)
def main(
    cache: Path, model: str, size_px: int, batch_size: int, steps: int, input_threads: int, compiled: bool
) -> None:
    """Measure the three rates in one run."""
    if not torch.cuda.is_available():
        click.echo("no GPU here: nothing measured")
        return
    config = TrainConfig(model=model, weights="none", size_px=size_px, batch_size=batch_size, compile=compiled)
    machine = Machine(input_threads=input_threads, log_every=10**9)
    with join_processes("cuda") as processes, tempfile.TemporaryDirectory(prefix="step-") as folder:
        measure(Path(folder) / "run", cache, replace(config, epochs=1000), machine, processes, steps)


def measure(
    path: Path, cache_path: Path, config: TrainConfig, machine: Machine, processes: Processes, steps: int
) -> None:
    """Measure and print."""
    run, cache = begin(path, cache_path, config, processes)
    setup = set_up(run, cache, machine, processes)
    learner = start(setup)
    model = prepare(setup, learner)
    batch, keys = next(epoch_batches(setup, learner.progress))
    resident = [tensor.clone() for tensor in make_inputs(setup, batch, keys, 0)]
    batch = replace(batch, **{name: getattr(batch, name).clone() for name in ("images", "z_norm", "labels")})

    def step(images: torch.Tensor, z_norm: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=config.bf16):
            logits = model(images, z_norm)
        image_losses(logits, labels, setup.class_weights).mean().backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)

    def augmented() -> None:
        step(*make_inputs(setup, batch, keys, 0))

    rates = {"a model on a resident batch": rate(lambda: step(*resident), len(keys), steps)}
    rates["b with augmentation"] = rate(augmented, len(keys), steps)
    augmentation = rate(lambda: make_inputs(setup, batch, keys, 0), len(keys), steps)
    with Watch(run, cache, processes, learner.progress, steps) as watch:
        batches = endless(setup, learner)
        learner.progress.batches = 0
        rates["c the run from the cache"] = rate(
            lambda: whole_step(setup, learner, model, batches, watch), config.batch_size, steps
        )
    print_rates(config, rates, rates["b with augmentation"] / augmentation)
    print_evaluation(setup, learner, batch.images, batch.z_norm, steps)
    click.echo(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def whole_step(setup: Setup, learner: Learner, model: torch.nn.Module, batches: Iterator, watch: Watch) -> None:
    """Do one step as a run does it, an epoch being endless."""
    learner.progress.batches %= setup.schedule.batches - 1  # full batches only
    train_step(setup, learner, model, batches, watch)


def endless(setup: Setup, learner: Learner) -> Iterator:
    """Yield full batches, epoch after epoch."""
    for _ in cycle([None]):
        for batch, keys in epoch_batches(setup, replace(learner.progress, batches=0)):
            if len(keys) == setup.config.batch_size:
                yield batch, keys


def rate(work: Callable[[], object], images: int, steps: int) -> float:
    """Return images/s of some work on the GPU, after ten times to warm up."""
    for _ in range(10):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        work()
    torch.cuda.synchronize()
    return steps * images / (time.perf_counter() - began)


def print_rates(config: TrainConfig, rates: dict[str, float], share: float) -> None:
    """Print the three rates, each with its ratio to the first."""
    click.echo(
        f"{config.model} at {config.size_px} px, batch {config.batch_size}, bf16, {torch.cuda.get_device_name()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    )
    first = next(iter(rates.values()))
    for name, images_per_s in rates.items():
        click.echo(f"{name:<32}{images_per_s:>9.0f} images/s  {images_per_s / first:.3f}")
    click.echo(f"augmentation is {100 * share:.1f} % of a step")


def print_evaluation(setup: Setup, learner: Learner, images: torch.Tensor, z_norm: torch.Tensor, steps: int) -> None:
    """Print the rate of evaluation with TTA, by view, against forward passes alone."""
    net, normalise = learner.evaluated.eval(), setup.augment.normalise
    grey = images.float().div_(255)
    count = len(list(views(grey[:1], True)))
    ready = normalise(grey).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=setup.config.bf16):
            net(ready, z_norm)

    with torch.inference_mode():
        alone = rate(forward, len(images), steps)
        tta = count * rate(
            lambda: look(net, images, z_norm, normalise, bf16=setup.config.bf16, tta=True), len(images), steps // count
        )
    click.echo(f"forward alone {alone:.0f} images/s; with TTA {tta:.0f} views/s, {tta / alone:.3f}")


if __name__ == "__main__":
    main()

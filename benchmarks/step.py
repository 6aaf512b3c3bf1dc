"""Measure a training step on a GPU: the model alone, with augmentation, and the whole run from a cache.

    python -m benchmarks.step --cache cache.zarr [--model resnet50 --size 224 --batch-size 256]

Prints images/s of (a) the model on one resident batch, (b) the same with augmentation and mixup, (c) steps fed from
the cache, with ratios to (a), the share of (b) that augmentation takes, the peak memory of (c), and evaluation with TTA
from the cache, by view, against forward passes alone. Without a GPU it says so and ends.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torchvision

from training.model.loss import image_losses
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes, join_processes
from training.run.inference import predict_slices, views
from training.run.job import begin
from training.run.loop import autocast, epoch_batches, make_inputs, train_step
from training.run.setup import Learner, Setup, open_evaluation, prepare, set_up, start
from training.run.watch import Watch


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
    runtime = Runtime(input_threads=input_threads, log_every=10**9)
    with join_processes("cuda") as processes, tempfile.TemporaryDirectory(prefix="step-") as folder:
        measure(Path(folder) / "run", cache, replace(config, epochs=1000), runtime, processes, steps)


def measure(
    path: Path, cache_path: Path, config: TrainConfig, runtime: Runtime, processes: Processes, steps: int
) -> None:
    """Measure and print."""
    run, cache = begin(path, cache_path, config, processes)
    setup = set_up(run, cache, runtime, processes)
    if setup.schedule.batches < 3:
        raise click.ClickException(f"{cache_path}: has too few training slices for batches of {config.batch_size}")
    learner = start(setup)
    model = prepare(setup, learner)
    with closing(epoch_batches(setup, learner.progress)) as batches:
        batch, keys = next(batches)
        images, z_norm, labels = (tensor.clone() for tensor in (batch.images, batch.z_norm, batch.labels))
    batch = replace(batch, images=images, z_norm=z_norm, labels=labels)
    resident = [tensor.clone() for tensor in make_inputs(setup, batch, keys, 0)]

    def step(images: torch.Tensor, z_norm: torch.Tensor, labels: torch.Tensor) -> None:
        with autocast(config, setup.device):
            logits = model(images, z_norm)
        image_losses(logits, labels, setup.class_weights).mean().backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)

    def augmented() -> None:
        step(*make_inputs(setup, batch, keys, 0))

    rates = {"a model on a resident batch": rate(lambda: step(*resident), len(keys), steps)}
    rates["b with augmentation"] = rate(augmented, len(keys), steps)
    augmentation = rate(lambda: make_inputs(setup, batch, keys, 0), len(keys), steps)
    images_in_batch = setup.schedule.num_slices / setup.schedule.batches
    torch.cuda.reset_peak_memory_stats()
    with Watch(run, cache, processes, learner.progress, steps) as watch, closing(endless(setup, learner)) as batches:
        rates["c the run from the cache"] = rate(
            lambda: whole_step(setup, learner, model, batches, watch), images_in_batch, steps
        )
    print_rates(config, rates, rates["b with augmentation"] / augmentation)
    click.echo(f"peak GPU memory of the run {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print_evaluation(setup, learner, images, z_norm, steps)


def whole_step(setup: Setup, learner: Learner, model: torch.nn.Module, batches: Iterator, watch: Watch) -> None:
    """Do one step as a run does it, an epoch being endless."""
    learner.progress.batches %= setup.schedule.batches
    train_step(setup, learner, model, batches, watch)


def endless(setup: Setup, learner: Learner) -> Generator[Any, None, None]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from epoch_batches(setup, replace(learner.progress, batches=0))


def rate(work: Callable[[], object], images: float, steps: int) -> float:
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
    versions = f"torch {torch.__version__} for CUDA {torch.version.cuda}, torchvision {torchvision.__version__}"
    click.echo(
        f"{config.model} at {config.size_px} px, batch {config.batch_size}, bf16, {torch.cuda.get_device_name()}, "
        f"{versions}, Python {platform.python_version()}"
    )
    first = next(iter(rates.values()))
    for name, images_per_s in rates.items():
        click.echo(f"{name:<32}{images_per_s:>9.0f} images/s  {images_per_s / first:.3f}")
    click.echo(f"augmentation is {100 * share:.1f} % of a step")


def print_evaluation(setup: Setup, learner: Learner, images: torch.Tensor, z_norm: torch.Tensor, steps: int) -> None:
    """Print the rate of evaluation with TTA from the cache, by view, against forward passes on a resident batch."""
    net, normalise, config = learner.evaluated.eval(), setup.augment.normalise, setup.config
    grey = images.float().div_(255)
    num_views = len(list(views(grey[:1], True)))
    ready = normalise(grey).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with autocast(config, setup.device):
            net(ready, z_norm)

    with torch.inference_mode():
        alone = rate(forward, len(images), steps)
    some = np.arange(setup.cache.num_slices)[: -(-steps // num_views) * config.batch_size]
    stream = open_evaluation(setup.run, setup.cache, some, setup.runtime, setup.processes)
    seconds = np.inf
    for _ in range(2):  # the first time warms up
        began = time.perf_counter()
        predict_slices(net, stream, len(some), normalise, setup.processes, bf16=config.bf16, tta=True)
        seconds = time.perf_counter() - began
    tta = num_views * len(some) / seconds
    click.echo(f"forward alone {alone:.0f} images/s; evaluation with TTA {tta:.0f} views/s, {tta / alone:.3f}")


if __name__ == "__main__":
    main()

"""Measure images/s of a step on a resident batch, with augmentation, and from the cache, in turns."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.checks import Report, clocks
from training.data.batches import Batch
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.inference import predict_slices, views
from training.run.inputs import make_inputs
from training.run.job import begin
from training.run.loop import epoch_batches
from training.run.setup import Learner, Setup, prepare, set_up, start
from training.run.step import autocast, learn, train_step, update
from training.run.streams import open_evaluation
from training.run.task import Task
from training.run.watch import Watch

FIELDS = ("images", "z_norm", "labels", "keys", "lines", "drawn")


@dataclass(frozen=True)
class Load:
    """Steps in a round, `warm` untimed and `steps` timed ones, and the number of rounds."""

    warm: int
    steps: int
    rounds: int = 3


@dataclass(frozen=True)
class Resident:
    """A batch on the device, its keys on the host, its number in the run, and the network's inputs."""

    batch: Batch
    keys: np.ndarray
    number: int
    inputs: tuple[Tensor, Tensor, Tensor]


@dataclass
class Bench:
    """A prepared run: its network, one batch of each size on the device, and the iterator of an epoch."""

    setup: Setup
    learner: Learner
    model: nn.Module
    watch: Watch
    batches: Iterator[tuple[Batch, np.ndarray]]
    resident: list[Resident]
    augmenting: list[Callable[[], float]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.setup.device

    def step_resident(self, which: int = 0) -> None:
        """Run a step without reading and augmenting: loss, gradients, clipping, check, averaging, logging."""
        resident = self.resident[which]
        self.watch.record_batch(resident.batch.lines, len(resident.keys))
        self._learn(resident.inputs)

    def step_augmented(self) -> None:
        """Run the same step after augmenting and mixing the resident batch, and record the device time of that."""
        resident = self.resident[0]
        self.watch.record_batch(resident.batch.lines, len(resident.keys))
        stop = stopwatch(self.device)
        inputs = make_inputs(self.setup, resident.batch, resident.keys, resident.number)
        self.augmenting.append(stop())
        self._learn(inputs)

    def step_from_cache(self) -> None:
        """Run a complete step, as in training."""
        train_step(self.setup, self.learner, self.model, self.batches, self.watch)

    def _learn(self, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        learner, progress = self.learner, self.learner.progress
        loss = learn(self.setup, learner, self.model, inputs, synchronise=True)
        rate = self.setup.schedule.rate(progress.step)
        norm = update(self.setup, learner, loss, rate)
        progress.step += 1
        self.watch.record_step(progress, rate, loss, norm)

    def seconds(self, step: Callable[[], None], load: Load) -> float:
        """Return the seconds per step, including reading the losses, as a run does at intervals.

        Raises:
            RunError: if a loss is not finite.
        """
        for _ in range(load.warm):
            step()
        self.watch.log_pending()
        wait(self.device)
        began = time.perf_counter()
        for _ in range(load.steps):
            step()
        self.watch.log_pending()
        wait(self.device)
        return (time.perf_counter() - began) / load.steps


@contextmanager
def bench(
    folder: Path, cache_path: Path, config: TrainConfig, runtime: Runtime, processes: Processes
) -> Iterator[Bench]:
    """Set up a run up to its first step, warmed up on each batch size."""
    run, cache = begin(folder / "run", cache_path, config, processes)
    setup = set_up(Task(run, cache, runtime, processes))
    learner = start(setup)
    model = prepare(setup, learner)
    batches = epoch_batches(setup, learner.progress)
    with Watch(setup, learner.progress, setup.schedule.total_steps) as watch, closing(batches):
        ready = Bench(setup, learner, model, watch, batches, resident_batches(setup, learner))
        for which in (*range(len(ready.resident)), 0):
            ready.step_resident(which)
        watch.log_pending()
        yield ready


def resident_batches(setup: Setup, learner: Learner) -> list[Resident]:
    """Return a batch of each size in the epoch with its keys and inputs, the most frequent size first."""
    sizes = [setup.schedule.images_in_batch(number) for number in range(setup.schedule.batches)]
    found: dict[int, Resident] = {}
    with closing(epoch_batches(setup, replace(learner.progress))) as batches:
        for number, (batch, keys) in enumerate(batches):
            if sizes[number] not in found:
                kept = replace(batch, **{name: getattr(batch, name).clone() for name in FIELDS})
                found[sizes[number]] = Resident(kept, keys, number, make_inputs(setup, kept, keys, number))
            if len(found) == len(set(sizes)):
                break
    return [found[size] for size in sorted(found, key=sizes.count, reverse=True)]


def measure_rates(report: Report, part: str, title: str, of: Bench, load: Load, *, least: float | None = None) -> float:
    """Measure the three steps in turns, and the device time of augmentation; return the resident batch's images/s.

    Args:
        least: target in images/s of a step from the cache; None if there is no target.
    """
    steps = {"resident": of.step_resident, "augmented": of.step_augmented, "from the cache": of.step_from_cache}
    each: dict[str, list[float]] = {name: [] for name in steps}
    with clocks(report, part, title):
        for _ in range(load.rounds):
            for name, step in steps.items():
                each[name].append(of.seconds(step, load))
    seconds = {name: float(np.median(values)) for name, values in each.items()}
    schedule = of.setup.schedule
    images = dict.fromkeys(steps, float(len(of.resident[0].keys))) | {
        "from the cache": schedule.num_slices / schedule.batches
    }
    rates = {name: images[name] / seconds[name] for name in steps}
    for name, rate in rates.items():
        spread = (max(each[name]) - min(each[name])) / seconds[name]
        report.fact(part, f"{title}, {name} (rounds differ by {100 * spread:.1f} %)", rate, "images/s")
    report.at_least(part, f"{title}: from the cache / resident", rates["from the cache"] / rates["resident"], 0.97)
    if least is not None:
        report.at_least(part, f"{title}: from the cache", rates["from the cache"], least, "images/s")
    share = float(np.median([elapsed() for elapsed in of.augmenting])) / seconds["augmented"]
    report.below(part, f"{title}: augmentation on the device", 100 * share, 3, "% of a step")
    report.holds(part, f"{title}: losses and gradients finite", True, f"{of.learner.progress.step} steps")
    return rates["resident"]


def measure_evaluation(report: Report, of: Bench, slices: int) -> None:
    """Measure evaluation with TTA from the cache, per view, against forward passes on a resident batch."""
    setup, net = of.setup, of.learner.evaluated.eval()
    batch = of.resident[0].batch
    grey = batch.images.float().div_(255)
    count = len(list(views(grey[:1], tta=True)))
    ready = setup.augment.normalise(grey).contiguous(memory_format=torch.channels_last)
    some = np.arange(min(slices, setup.cache.num_slices))
    alone, whole = [], []
    with clocks(report, "f", "evaluation"):
        for _ in range(3):
            with torch.inference_mode(), autocast(setup.config, setup.device):
                net(ready, batch.z_norm)
                wait(of.device)
                began = time.perf_counter()
                for _ in range(max(1, len(some) * count // len(grey) // 2)):
                    net(ready, batch.z_norm)
                wait(of.device)
            alone.append(max(1, len(some) * count // len(grey) // 2) * len(grey) / (time.perf_counter() - began))
            stream = open_evaluation(setup, some)
            began = time.perf_counter()
            predict_slices(setup, net, stream, tta=True)
            whole.append(count * len(some) / (time.perf_counter() - began))
    forward, tta = float(np.median(alone)), float(np.median(whole))
    report.fact("f", "forward passes alone", forward, "images/s")
    report.fact("f", "evaluation with TTA from the cache", tta, "views/s")
    report.at_least("f", "evaluation with TTA / forward alone", tta / forward, 0.9)


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Start measuring device time; call the result to stop, and call what that returns to get the seconds later."""
    if device.type != "cuda":
        began = time.perf_counter()

        def stop_host() -> Callable[[], float]:
            seconds = time.perf_counter() - began
            return lambda: seconds

        return stop_host
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def stop_device() -> Callable[[], float]:
        last.record()
        return lambda: first.elapsed_time(last) / 1000

    return stop_device

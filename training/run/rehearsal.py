"""Rehearse a run: try each part of it once, and estimate how long all of it will take."""

import tempfile
import time
from pathlib import Path

import torch

from training.errors import RunError
from training.model.network import FusionNet
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.inference import predict_slices
from training.run.job import begin
from training.run.loop import epoch_batches, errors_explained, save_progress
from training.run.setup import Learner, Setup, prepare, set_up, start
from training.run.step import train_step
from training.run.streams import lines_of, open_evaluation
from training.run.task import Task
from training.run.validation import share_statistics
from training.run.watch import Watch, duration
from training.system import peak_memory_bytes
from training.words import counted


def rehearse(
    cache_path: str | Path,
    config: TrainConfig,
    runtime: Runtime,
    processes: Processes,
    local_copy: Path | None = None,
) -> str:
    """Try two steps, an evaluation, a save and a reload in a temporary folder.

    If the backbone is frozen at first, two steps with the frozen backbone are tried before these.

    Returns:
        a summary to print: time per step and per slice, memory, and the estimated duration of the run.

    Raises:
        TrainingError: any error that the run itself would raise.
    """
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        path = Path(processes.gather(folder)[0]) / "run"
        run, cache = begin(path, cache_path, config, processes, local_copy)
        setup = set_up(Task(run, cache, runtime, processes))
        learner = start(setup)
        with errors_explained(setup), Watch(setup, learner.progress, 2) as watch:
            frozen = min(config.frozen_epochs, config.epochs)
            frozen_step_s = step_s = _time_step(setup, learner, watch)
            if 0 < frozen < config.epochs:
                learner.progress.epoch, learner.progress.batches = frozen, 0
                step_s = _time_step(setup, learner, watch)
            share_statistics(setup, learner)
            slice_s = _time_evaluation(setup, learner)
            save_progress(setup, learner, watch)
        processes.wait()
        _check_reload(setup, learner)
        processes.wait()
    total, in_a_step = setup.schedule.total_steps, config.batch_size * config.accumulation
    trained_s = (frozen_step_s * frozen + step_s * (config.epochs - frozen)) * setup.schedule.steps
    seconds = trained_s + slice_s * setup.num_validation * config.epochs
    return "\n".join(
        [
            f"{counted(total, 'step')} of {counted(in_a_step, 'slice')}, {step_s:.3f} s each",
            f"{counted(setup.num_validation, 'validation slice')} per epoch, {slice_s * 1000:.2f} ms each",
            f"{_memory(processes.device)}",
            f"the run will take about {duration(seconds)}",
        ]
    )


def _time_step(setup: Setup, learner: Learner[FusionNet], watch: Watch) -> float:
    """Take two steps and return the duration of the second in seconds: the first is a warm-up."""
    model, batches = prepare(setup, learner), epoch_batches(setup, learner.progress)
    began = time.perf_counter()
    for _ in range(min(2, setup.schedule.steps)):
        began = time.perf_counter()
        train_step(setup, learner, model, batches, watch)
        watch.log_pending()  # waits for the device
    return time.perf_counter() - began


def _time_evaluation(setup: Setup, learner: Learner[FusionNet]) -> float:
    """Evaluate two batches of validation slices and return the time per slice in seconds."""
    some = lines_of(setup.run, setup.cache, "validation")[: 2 * setup.config.batch_size]
    if not len(some):
        return 0.0
    stream = open_evaluation(setup, some)
    began = time.perf_counter()
    predict_slices(setup, learner.evaluated, stream)
    return (time.perf_counter() - began) / len(some)


def _check_reload(setup: Setup, learner: Learner[FusionNet]) -> None:
    saved, loaded = learner.net.state_dict(), start(setup).net.state_dict()
    for name, tensor in saved.items():
        if not torch.equal(tensor, loaded[name]):
            raise RunError(f"the reloaded checkpoint differs in {name}: check the disk of {tempfile.gettempdir()}")


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"GPU memory: {peak / 2**30:.2f} of {whole / 2**30:.1f} GiB at the peak"
    peak_bytes = peak_memory_bytes()
    return (
        "memory: not measured on this system"
        if peak_bytes is None
        else f"memory: {peak_bytes / 2**30:.2f} GiB at the peak"
    )

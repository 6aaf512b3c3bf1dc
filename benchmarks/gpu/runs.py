"""Complete runs: two epochs with their log, the path of several processes, and too little memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from benchmarks.gpu.checks import Report, clocks
from benchmarks.gpu.rates import Bench, Load, bench, wait
from training.errors import RunError
from training.run import step
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.inputs import make_inputs
from training.run.job import begin
from training.run.loop import fit
from training.run.runs import Run
from training.run.setup import set_up
from training.run.task import Task


def measure_fit(
    report: Report, folder: Path, cache_path: Path, config: TrainConfig, runtime: Runtime, processes: Processes
) -> Callable[[float], None]:
    """Train two epochs with validation, log and checkpoints; return a function that compares them with a rate."""
    run, cache = begin(folder / "run", cache_path, replace(config, epochs=2), processes)
    if processes.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(processes.device)
    with clocks(report, "d", "two epochs"):
        fit(Task(run, cache, runtime, processes))
    rate = logged_rate(run)
    report.fact("d", "two epochs with validation, log and checkpoint: images/s of the log", rate, "images/s")
    losses = pd.read_csv(run.log)["loss"].dropna()
    falls = bool(np.isfinite(losses).all() and losses.iloc[-3:].mean() < losses.iloc[:3].mean())
    report.holds("d", "the loss falls", falls, f"{losses.iloc[:3].mean():.3f} to {losses.iloc[-3:].mean():.3f}")
    if processes.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(processes.device) / 2**30
        report.fact("h", f"peak GPU memory, {config.model} at {config.size_px} px, {config.batch_size}", peak, "GiB")
    else:
        report.fact("h", "peak GPU memory", "no GPU here")
    return lambda resident: report.at_least("d", "two epochs / resident", rate / resident, 0.97)


def logged_rate(run: Run) -> float:
    """Return the median images/s in log.csv, without the first entry of each epoch, which includes the start-up."""
    log = pd.read_csv(run.log).dropna(subset=["images_per_s"])
    steady = log[log.groupby("epoch").cumcount() > 0]
    return float((steady if len(steady) else log)["images_per_s"].median())


def measure_distributed(
    report: Report,
    folder: Path,
    cache_path: Path,
    config: TrainConfig,
    runtime: Runtime,
    device: torch.device,
    load: Load,
) -> Callable[[float], None]:
    """Measure steps on the path of several processes, in one; return a function that compares them with a rate."""
    with joined_alone(device) as processes, bench(folder, cache_path, config, runtime, processes) as of:
        seconds = float(np.median([of.seconds(of.step_from_cache, load) for _ in range(load.rounds)]))
    rate = of.setup.schedule.num_slices / of.setup.schedule.batches / seconds
    report.fact("d", "one process by the path of several, from the cache", rate, "images/s")
    return lambda resident: report.at_least("d", "one process by the path of several / resident", rate / resident, 0.95)


@contextmanager
def joined_alone(device: torch.device) -> Iterator[Processes]:
    """Join a process group of a single process, over NCCL or gloo."""
    for library in ("GLOO", "NCCL"):  # the machine may have no other network
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Processes(0, 1, device, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def measure_out_of_memory(
    report: Report,
    folder: Path,
    cache_path: Path,
    config: TrainConfig,
    runtime: Runtime,
    processes: Processes,
    scarce: Callable[[torch.device], AbstractContextManager[None]],
) -> None:
    """Train with too little memory, and check the error."""
    run, cache = begin(folder / "run", cache_path, config, processes)
    try:
        with scarce(processes.device):
            fit(Task(run, cache, runtime, processes))
    except RunError as error:
        message = str(error)
        one_line = "out of GPU memory" in message and "--batch-size" in message and "\n" not in message
        report.holds("g", "out of memory is one line with what to set", one_line, message.replace(str(folder), ""))
    else:
        report.holds("g", "out of memory is one line with what to set", False, "the run did not fail")


@contextmanager
def scarce_memory(device: torch.device) -> Iterator[None]:
    """Limit PyTorch to 2 GiB of the GPU's memory."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def pretended_scarcity(device: torch.device) -> Iterator[None]:
    """Raise an out-of-memory error for the first batch, on a machine without a GPU."""

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    true_learn = step.learn
    step.learn = exhausted  # type: ignore[assignment]
    try:
        yield
    finally:
        step.learn = true_learn


def measure_agreement(report: Report, of: Bench, runtime: Runtime) -> None:
    """Compare the network's inputs computed on the device with those computed on the CPU."""
    resident = of.resident[0]
    host = replace(
        resident.batch,
        **{name: getattr(resident.batch, name).cpu() for name in ("images", "z_norm", "labels", "drawn")},
    )
    setup = set_up(Task(of.setup.run, of.setup.cache, runtime, Processes(0, 1, torch.device("cpu"))))
    expected = make_inputs(setup, host, resident.keys, resident.number)
    wait(of.device)
    for name, there, here in zip(("images", "z_norm", "labels"), resident.inputs, expected, strict=True):
        # bfloat16 has 8 bits, so rounding changes a value by at most 1/256; sums in float32 differ by 1e-4.
        most = 2**-8 + 1e-3 if there.dtype == torch.bfloat16 else 1e-3
        error = difference(there.float().cpu(), here.float())
        report.holds(
            "a", f"make_inputs, {name}: CPU against device", error <= most, error, wanted=f"at most {most:.2g}"
        )


def difference(there: torch.Tensor, here: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative for values above 1; inf if only one is NaN."""
    apart = (there - here).abs() / here.abs().clamp_min(1)
    both_missing = there.isnan() & here.isnan()  # a label may be missing
    return float(apart.masked_fill(both_missing, 0).nan_to_num(torch.inf).max())

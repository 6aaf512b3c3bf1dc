"""Find waits in a training step: synchronisations, which raise errors, and gaps between the GPU's kernels."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.checks import Report
from benchmarks.gpu.rates import Bench, wait

# Calls of the CUDA runtime in which the host waits. The profiler itself makes some at its end.
WAITS = ("cudaStreamSynchronize", "cudaMemcpy", "cudaDeviceSynchronize", "cudaEventSynchronize")
LONG_GAP_S = 50e-6


@dataclass(frozen=True)
class Busy:
    """A summary of kernels: seconds from the first to the last, idle seconds, and the number of long gaps."""

    seconds: float
    idle: float
    long_gaps: int


def measure_syncs(report: Report, of: Bench, steps: int) -> None:
    """Run steps in which a synchronisation raises an error; if one does, find the lines that wait in further steps."""
    of.step_from_cache()
    wait(of.device)
    name, unit = "steps in which the host waits for the GPU", f"of {steps}"
    try:
        with sync_mode(of.device, "error"):
            for _ in range(steps):
                of.step_from_cache()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        report.holds("c", name, False, f"it waits, at {', '.join(waits_of(of)) or error}", wanted=f"0 {unit}")
    else:
        report.holds("c", name, True, 0, unit, wanted="0")
    of.watch.log_pending()


def waits_of(of: Bench, steps: int = 3) -> list[str]:
    """Run steps in which a synchronisation gives a warning; return the lines that wait, and how often."""
    with sync_mode(of.device, "warn"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(steps):
            of.step_from_cache()
    lines = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message))
    return [f"{line} ({count} in {steps} steps)" for line, count in lines.most_common(5)]


def measure_gaps(report: Report, of: Bench, profiled: int) -> None:
    """Run steps under the profiler, and record calls that wait and gaps between kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if of.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(profiled):
            of.step_from_cache()
        wait(of.device)
    events = profile.events()
    waits = Counter(event.name for event in events if event.name in WAITS)
    listed = ", ".join(f"{name} {count}" for name, count in waits.items()) or "none"
    report.fact("c", f"waits of the host, all threads, {profiled} steps and the profiler's own", listed)
    on_gpu = [event for event in events if event.device_type == torch.profiler.DeviceType.CUDA]
    busy = of_kernels((event.time_range.start * 1e-6, event.time_range.end * 1e-6) for event in on_gpu)
    report.fact("c", "GPU idle between kernels, under the profiler", 100 * busy.idle / max(busy.seconds, 1e-9), "%")
    report.fact("c", f"gaps above {LONG_GAP_S * 1e6:.0f} us, {profiled} steps", busy.long_gaps)
    of.watch.log_pending()


def of_kernels(spans: Iterable[tuple[float, float]]) -> Busy:
    """Summarise spans of kernels, start and end in seconds, in any order and on any stream."""
    ordered = np.array(sorted(spans)).reshape(-1, 2)
    if not len(ordered):
        return Busy(0, 0, 0)
    done = np.maximum.accumulate(ordered[:, 1])
    gaps = np.maximum(ordered[1:, 0] - done[:-1], 0)
    return Busy(float(done[-1] - ordered[0, 0]), float(gaps.sum()), int((gaps > LONG_GAP_S).sum()))


@contextmanager
def sync_mode(device: torch.device, mode: str) -> Iterator[None]:
    """Have PyTorch raise ("error") or warn ("warn") when an operation waits for a GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

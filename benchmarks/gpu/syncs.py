"""Look for what a step waits for: synchronisations that are errors, and gaps between the GPU's kernels."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gpu.checks import Report
from benchmarks.gpu.rates import Bench, wait

# Calls of the CUDA runtime by which the host waits. The profiler itself ends with some for the whole device.
WAITS = ("cudaStreamSynchronize", "cudaMemcpy", "cudaDeviceSynchronize", "cudaEventSynchronize")
LONG_GAP_S = 50e-6


@dataclass(frozen=True)
class Busy:
    """What kernels say of a stretch of time: seconds from first to last, idle ones, and idle gaps that are long."""

    seconds: float
    idle: float
    long_gaps: int


def measure_syncs(report: Report, of: Bench, steps: int, profiled: int) -> None:
    """Do steps where a synchronisation is an error, then some under the profiler."""
    of.step_from_cache()
    wait(of.device)
    with sync_is_error(of.device):
        for _ in range(steps):
            of.step_from_cache()
    report.holds("c", "steps in which the host waits for the GPU", True, 0, f"of {steps}", wanted="0")
    of.watch.log_pending()
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
    """Summarise when kernels ran, begin and end in seconds, in any order and on any stream."""
    ordered = np.array(sorted(spans)).reshape(-1, 2)
    if not len(ordered):
        return Busy(0, 0, 0)
    done = np.maximum.accumulate(ordered[:, 1])
    gaps = np.maximum(ordered[1:, 0] - done[:-1], 0)
    return Busy(float(done[-1] - ordered[0, 0]), float(gaps.sum()), int((gaps > LONG_GAP_S).sum()))


@contextmanager
def sync_is_error(device: torch.device) -> Iterator[None]:
    """Have PyTorch raise where an operation waits for a GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

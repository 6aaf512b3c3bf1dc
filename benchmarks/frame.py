"""Common parts of benchmarks: timing functions in turns, the best of repeats, the machine, and a table."""

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar


class Duration(NamedTuple):
    """Wall time, and CPU time of this process and of its children that have ended, in seconds.

    Only wall time includes waiting for a disk; only CPU time is meaningful on a busy machine.
    """

    wall: float
    cpu: float


Figures = TypeVar("Figures", bound=tuple[float, ...])  # a named tuple


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(function: Callable[[], object]) -> Duration:
    """Call a function and return how long it took."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    function()
    return Duration(time.perf_counter() - wall, cpu_seconds() - cpu)


def best(ways: Mapping[str, Callable[[], Figures]], repeats: int) -> dict[str, Figures]:
    """Run the functions in turns, so that a busy machine hardly affects ratios, and return the least of each figure."""
    runs: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            runs[name].append(way())
    return {name: type(took[0])(*map(min, zip(*took, strict=True))) for name, took in runs.items()}


def peak_mb() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def machine() -> str:
    """Return a line that describes the machine."""
    about = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip() for line in about.read_text().splitlines() if line.startswith("model name")
    ]
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    return f"{models[0] if models else platform.machine()}, {cores}, Python {platform.python_version()}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, with the first column left-aligned and the others right-aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )

"""Time what benchmarks compare: ways that take turns, the least of the repeats, the machine, and a table."""

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar


class Took(NamedTuple):
    """Seconds on the clock, and on cores of this process and of its children that have ended.

    Only the first counts waiting for a disk; only the second means something on a busy machine.
    """

    wall: float
    cpu: float


Figures = TypeVar("Figures", bound=tuple[float, ...])  # a named tuple


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(function: Callable[[], object]) -> Took:
    """Call a function and return what it took."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    function()
    return Took(time.perf_counter() - wall, cpu_seconds() - cpu)


def best(ways: Mapping[str, Callable[[], Figures]], repeats: int) -> dict[str, Figures]:
    """Return the least of each figure of each way, the ways taking turns: a busy machine disturbs ratios little."""
    runs: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            runs[name].append(way())
    return {name: type(took[0])(*map(min, zip(*took, strict=True))) for name, took in runs.items()}


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def machine() -> str:
    """Return the line that says where figures come from."""
    about = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip() for line in about.read_text().splitlines() if line.startswith("model name")
    ]
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    return f"{models[0] if models else platform.machine()}, {cores}, Python {platform.python_version()}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text under their heads: the first column to the left, figures to the right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )

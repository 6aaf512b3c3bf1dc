"""Estimate what a plan takes before it is begun: disk and time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.planning.jobs import ShardJob
from pipeline.words import counted

# Seconds of one core a slice: reading and decoding, and a pixel of each window.
# Source: benchmarks/README.md, "Shard task": 2,275 slices/s at 224, 1,211 at 380 and 981 at both, in three windows.
SLICE_S, PIXEL_S = 0.234e-3, 4.1e-9 / 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the tasks of a plan are likely to take.

    Attributes:
        disk_bytes: rounded up generously.
        core_seconds: of one core of the machine that the benchmarks ran on, from uncompressed files on a local disk.
    """

    slices: int
    disk_bytes: int
    core_seconds: float

    def as_line(self, cores: int) -> str:
        """In words, for so many cores."""
        return (
            f"about {counted(self.slices, 'slice')}: {_amount(self.disk_bytes)} on disk, "
            f"{_duration(self.core_seconds / cores)} with {counted(cores, 'core')}; compressed files, archives and "
            "servers take longer"
        )


def estimate(jobs: Iterable[ShardJob], channels: int) -> Estimate:
    """Estimate the tasks of a plan; a file counts as one slice, since nobody has opened it."""
    slices = disk_bytes = 0
    core_seconds = 0.0
    for job in jobs:
        files, sides = len(job.paths()), [spec.size_px for spec in job.arrays]
        slices += files
        disk_bytes += _disk_need(sides, channels, files)
        core_seconds += files * (SLICE_S + PIXEL_S * channels * sum(side * side for side in sides))
    return Estimate(slices, disk_bytes, core_seconds)


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB" if size >= 1e6 else "less than 1 MB"


def _duration(seconds: float) -> str:
    """Roughly, for nobody plans by a second."""
    for limit, unit, word in ((7200, 3600, "h"), (120, 60, "min"), (10, 1, "s")):
        if seconds >= limit:
            return f"{seconds / unit:.{int(word == 'h')}f} {word}"
    return "seconds"


def _disk_need(sizes_px: Sequence[int], channels: int, slices: int) -> int:
    """Bytes that so many slices are likely to take, rounded up generously: 0.4 of the raw pixels.

    Source: 0.30 of the raw pixels for LZ4 on 52 real slices at 224, 0.26 at 380; records add about 1 KB a slice.
    """
    return sum(slices * int(0.4 * channels * side * side) for side in sizes_px) + 1024 * slices

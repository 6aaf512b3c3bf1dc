"""Estimate the disk space and time that a plan needs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.planning.jobs import ShardJob
from pipeline.words import counted

# Seconds of one core: per slice for reading and decoding, and per output pixel in one window.
# Source: benchmarks/README.md, "Shard task": 2,275 slices/s at 224, 1,211 at 380 and 981 at both, in three windows.
SLICE_S, PIXEL_S = 0.234e-3, 4.1e-9 / 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated cost of a plan.

    Attributes:
        slices: number of files, each counted as one slice.
        disk_bytes: a generous upper estimate.
        core_seconds: on one core of the machine of the benchmarks, for uncompressed files on a local disk.
    """

    slices: int
    disk_bytes: int
    core_seconds: float

    def as_line(self, cores: int) -> str:
        """Return the estimate in words for a number of cores."""
        return (
            f"about {counted(self.slices, 'slice')}: {_amount(self.disk_bytes)} on disk, "
            f"{_duration(self.core_seconds / cores)} with {counted(cores, 'core')}; compressed files, archives and "
            "servers take longer"
        )


def estimate(jobs: Iterable[ShardJob], channels: int) -> Estimate:
    """Estimate the cost of tasks; a file counts as one slice, as it has not been opened yet.

    Args:
        jobs: the tasks.
        channels: number of windows.
    """
    slices = disk_bytes = 0
    core_seconds = 0.0
    for job in jobs:
        files, sizes = len(job.paths()), [spec.size_px for spec in job.arrays]
        slices += files
        disk_bytes += _disk_bytes(sizes, channels, files)
        core_seconds += files * (SLICE_S + PIXEL_S * channels * sum(size * size for size in sizes))
    return Estimate(slices, disk_bytes, core_seconds)


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB" if size >= 1e6 else "less than 1 MB"


def _duration(seconds: float) -> str:
    """Format a duration with the precision of an estimate."""
    for limit, unit, word in ((7200, 3600, "h"), (120, 60, "min"), (10, 1, "s")):
        if seconds >= limit:
            return f"{seconds / unit:.{int(word == 'h')}f} {word}"
    return "seconds"


def _disk_bytes(sizes_px: Sequence[int], channels: int, slices: int) -> int:
    """Return a generous estimate of the bytes that slices take: 0.4 of the raw pixels, and 1 KB each for records.

    Source: LZ4 reduced 52 real slices to 0.30 of the raw pixels at 224, and to 0.26 at 380.
    """
    return sum(slices * int(0.4 * channels * size * size) for size in sizes_px) + 1024 * slices

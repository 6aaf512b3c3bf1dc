"""The tasks of a build: each fills one shard, or adds arrays to it."""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.dicom.records import Reject, Unit
from pipeline.planning.stages import ArraySpec


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One task: fill a shard, or add arrays to it.

    Attributes:
        shard: number of the shard.
        units: what to read, in slot order.
        arrays: what to write.
        adds_arrays: whether the shard already has a record, which determines rows and frames, and the task only adds
            `arrays`.
        missing: slots whose file has vanished since the shard was planned; they remain empty.
        rejected: (slot, reject) for each file that killed a worker.
        kept: rows that keep the images that the shard already has; only used by repair.
    """

    shard: int
    units: tuple[Unit, ...]
    arrays: tuple[ArraySpec, ...]
    adds_arrays: bool = False
    missing: frozenset[int] = frozenset()
    rejected: tuple[tuple[int, Reject], ...] = ()
    kept: frozenset[int] = frozenset()

    def paths(self) -> list[str]:
        """Return the paths of the files that the task reads."""
        return [unit.path for unit in self.units if unit.slot not in self.missing]


class HandedBack(NamedTuple):
    """A file to plan again, since its frames did not fit the shard or its content has changed since they were counted.

    Attributes:
        unit: the file as planned.
        frames: number of its frames.
        digest: xxh3-128 (hex) of its content.
    """

    unit: Unit
    frames: int
    digest: str

"""Say what a task is to do: a shard to fill, or to add arrays to."""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.dicom.records import Reject, Unit
from pipeline.planning.stages import ArraySpec


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One task: a shard to fill, or to add arrays to.

    Attributes:
        units: what to read, in slot order.
        arrays: what to write.
        again: the shard has a record already, rows and frames are as it says, and only these arrays are added.
        gone: slots whose file has vanished since they were planned: they stay empty.
        refused: slots whose file killed a worker -> the reject that says so.
        kept: rows that stay as the shard in this place has them; only a repair has any.
    """

    shard: int
    units: tuple[Unit, ...]
    arrays: tuple[ArraySpec, ...]
    again: bool = False
    gone: frozenset[int] = frozenset()
    refused: tuple[tuple[int, Reject], ...] = ()
    kept: frozenset[int] = frozenset()

    def paths(self) -> list[str]:
        """The files that the task reads."""
        return [unit.path for unit in self.units if unit.slot not in self.gone]


class HandedBack(NamedTuple):
    """A file with more frames than were left in the shard it was planned into, and what it turned out to be."""

    unit: Unit
    frames: int
    digest: str

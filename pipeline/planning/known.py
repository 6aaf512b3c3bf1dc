"""The state of a cache before a build: its current commit, and the finished work of a killed build."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.cache.ledger import Ledger
from pipeline.dicom.records import Unit


@dataclass(frozen=True, slots=True)
class Known:
    """The state of a cache.

    Attributes:
        committed: the files of the current commit.
        reading: fingerprint of reading of the current commit; None before the first.
        table: fingerprint of the table of the current commit; None before the first.
        committed_arrays: names of the arrays of the current commit, which have all of its files; empty if they were
            read with other settings than those wanted now.
        ledger: files that were read with the settings wanted now and whose slices are in finished shards, committed or
            left by a killed build.
        arrays: for shards that may differ from `committed_arrays`, shard -> names of the arrays that have all of the
            shard's files in `ledger`.
        pending: shard -> units that a killed or a running build has planned.
        done: those of `pending` that are finished.
        next_shard: the lowest shard number that was never used.
        retried: rejected files to read again, which are therefore left out of `ledger`.
        running: description of the build that is running now and processes `pending`; "" if none.
        identified: whether the cache has an identity; caches of format version 1 have none.
    """

    committed: Ledger
    reading: str | None
    table: str | None
    committed_arrays: frozenset[str]
    ledger: Ledger
    arrays: Mapping[int, frozenset[str]]
    pending: Mapping[int, tuple[Unit, ...]]
    done: frozenset[int]
    next_shard: int
    retried: frozenset[str] = frozenset()
    running: str = ""
    identified: bool = True

    def unfinished(self) -> dict[int, tuple[Unit, ...]]:
        """Return the units of each pending shard that is not finished."""
        return {shard: units for shard, units in self.pending.items() if shard not in self.done}

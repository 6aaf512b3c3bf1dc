"""Hold what the cache knows already: what is committed, and what a killed build has left."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.cache.ledger import Ledger
from pipeline.dicom.records import Unit


@dataclass(frozen=True, slots=True)
class Known:
    """What is there.

    Attributes:
        committed: the files of the current commit.
        reading: the fingerprint of how the current commit's files were read, None before the first.
        table: the fingerprint of the current commit's table, None before the first.
        committed_arrays: names of the arrays of the current commit; they hold every file of it.
        ledger: files that were read as is wanted now and whose slices lie in finished shards, committed or left by a
            killed build.
        arrays: shard -> names of the arrays that hold all of its files in `ledger`, where the commit does not vouch.
        pending: shard -> units that a killed build has planned.
        done: those of `pending` that it has finished.
        next_shard: the first shard number that was never given out.
        identified: whether the cache has an identity; one of format version 1 has none.
        running: who is building at this moment, so that `pending` is at work; "" where nobody else is.
        retried: files that are tried again, that is, left out of `ledger` though they were read.
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
        """What a killed build has left to be done."""
        return {shard: units for shard, units in self.pending.items() if shard not in self.done}

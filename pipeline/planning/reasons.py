"""Explain in words why a build has work to do."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from pipeline.planning.changes import Resolved
from pipeline.planning.jobs import ShardJob
from pipeline.planning.known import Known
from pipeline.planning.stages import Fingerprints

FIRST, NEW, CHANGED, READING_CHANGED = (
    "the first build",
    "a new file",
    "its content changed",
    "the settings or the version of reading have changed",
)
RETRIED = "it was rejected and is tried again"


def reason_to_read(known: Known, wanted: Fingerprints, path: str, changed: Set[str]) -> str:
    """Return why a file is read, for `pipeline why`."""
    if known.reading is None:
        return FIRST
    if known.reading != wanted.reading:
        return READING_CHANGED
    if path in known.retried:
        return RETRIED
    return CHANGED if path in changed else NEW


@dataclass(frozen=True)
class Work:
    """What a plan has to do.

    Attributes:
        fresh: paths to read that were not planned before.
        changed: paths whose content has changed.
        resumed: number of shards that a killed or running build has not finished.
        added: tasks that add arrays.
    """

    fresh: Set[str]
    changed: Set[str]
    resumed: int
    added: Sequence[ShardJob]


def reasons_to_build(known: Known, resolved: Resolved, wanted: Fingerprints, work: Work) -> list[str]:
    """Return in words why there is something to build; empty if there is nothing.

    Args:
        known: the state of the cache.
        resolved: the difference between the source and the cache.
        wanted: fingerprints that the build must produce.
        work: what the plan has to do.
    """
    fresh, changed, resumed, added = work.fresh, work.changed, work.resumed, work.added
    reasons = []
    if known.running and known.pending:
        left = f"{resumed:,} of {_count(len(known.pending), 'shard is', 'shards are')} left"
        reasons.append(f"a build is running ({known.running}): {left}")
    elif known.pending:
        left = f"{_count(resumed, 'shard is', 'shards are')} left"
        reasons.append(f"a build was interrupted and is resumed: {left}")
    if known.reading not in (None, wanted.reading):
        reasons.append(f"{READING_CHANGED}: {_count(len(fresh), 'file is', 'files are')} converted again")
    elif known.reading is None and not known.pending:
        reasons.append(f"first build: {_count(len(fresh), 'file', 'files')}")
    else:
        retried, changed = fresh & known.retried, fresh & changed
        reasons += _counted(len(retried), "rejected file is", "rejected files are", "tried again")
        reasons += _counted(len(fresh - retried - changed), "new file is", "new files are", "converted")
        reasons += _counted(len(changed), "changed file is", "changed files are", "converted")
    reasons += _counted(len(resolved.renamed), "file is", "files are", "renamed: the slices stay")
    reasons += _counted(len(resolved.vanished), "file is", "files are", "gone: --prune removes the slices")
    for spec in wanted.arrays:
        shards = sum(spec in job.arrays for job in added)
        if shards:
            what = f"size {spec.size_px} is new or its windows have changed"
            reasons.append(f"{what}: {_count(shards, 'shard is', 'shards are')} converted for it")
    same_reading = known.reading == wanted.reading
    if not added and same_reading and {spec.name for spec in wanted.arrays} != known.committed_arrays:
        reasons.append("the wanted sizes or windows differ from those of the commit, but are already converted")
    if known.table is not None and known.table != wanted.table:
        reasons.append("labels, classes or other settings of the table have changed: the table is written again")
    if not known.identified and not reasons:
        reasons.append("the cache has format version 1: a commit gives it an identity")
    return reasons


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _counted(number: int, one: str, many: str, what: str) -> list[str]:
    return [f"{_count(number, one, many)} {what}"] if number else []

"""Decide what to build and why, from what is there and what is wanted; pure, reads and writes nothing."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import xxhash

from pipeline.cache.ledger import Ledger
from pipeline.dicom.records import Reject, Unit
from pipeline.planning.changes import Resolved
from pipeline.planning.stages import ArraySpec, Fingerprints
from pipeline.source.listing import Listing

FIRST, NEW, CHANGED, OTHERWISE = "the first build", "a new file", "its content changed", "it is read in another way"
RETRIED = "it was rejected and is tried again"


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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build does.

    Attributes:
        resolved: which files stay and which are read.
        compared: files that had to be read to settle that.
        pending: shard -> units of every shard that is not committed yet, to be kept before the first is written.
        jobs: the tasks, in order.
        reasons: why, in plain words; empty where nothing is to be done.
        notes: what it is likely to take, and what is kept because the cache was built with it.
    """

    resolved: Resolved
    compared: tuple[str, ...]
    pending: dict[int, tuple[Unit, ...]]
    jobs: tuple[ShardJob, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def commit(self) -> bool:
        """Whether a new commit is due, with or without tasks."""
        return bool(self.reasons)

    @property
    def slices_expected(self) -> int:
        return sum(len(job.paths()) for job in self.jobs)

    def as_lines(self) -> list[str]:
        """What is done and why, and the notes, for a terminal."""
        return [*(self.reasons or ("nothing to do: the cache is up to date",)), *self.notes]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data: reasons, and what each task reads and writes."""
        return {
            "work_pending": self.commit,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "renamed": [list(pair) for pair in self.resolved.renamed],
            "vanished": self.resolved.vanished,
            "touched": self.resolved.touched,
            "compared": list(self.compared),
            "tasks": [
                {"shard": job.shard, "files": job.paths(), "arrays": [spec.images_path for spec in job.arrays]}
                for job in self.jobs
            ],
        }


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


def make(
    listing: Listing,
    known: Known,
    resolved: Resolved,
    compared: Iterable[str],
    wanted: Fingerprints,
    *,
    rows_per_shard: int,
) -> Plan:
    """Plan the shards and tasks.

    Args:
        resolved: `known.ledger` against `listing`.
        compared: files that were read for that.
    """
    unfinished = known.unfinished()
    planned = {unit.path for units in unfinished.values() for unit in units}
    changed = {listing.paths[line] for line in resolved.changed}
    paths = [listing.paths[line] for line in resolved.fresh]
    why = {path: _why(known, wanted, path, changed) for path in paths}
    fresh = [path for path in why if path not in planned]
    fresh = fresh if listing.ordered else shuffled(fresh)
    new = _new_shards([(path, why[path]) for path in fresh], known.next_shard, rows_per_shard)
    again = _added_arrays(known, resolved.kept, wanted)
    resumed = _left_jobs(listing, unfinished, wanted)
    jobs = (*again, *resumed, *(ShardJob(shard, units, wanted.arrays) for shard, units in new.items()))
    reasons = tuple(_reasons(known, resolved, wanted, set(fresh), changed, resumed=len(resumed), again=again))
    return Plan(resolved, tuple(compared), {**known.pending, **new}, jobs, reasons)


def _why(known: Known, wanted: Fingerprints, path: str, changed: Set[str]) -> str:
    if known.reading is None:
        return FIRST
    if known.reading != wanted.reading:
        return OTHERWISE
    if path in known.retried:
        return RETRIED
    return CHANGED if path in changed else NEW


def _left_jobs(
    listing: Listing, unfinished: Mapping[int, tuple[Unit, ...]], wanted: Fingerprints
) -> tuple[ShardJob, ...]:
    """Tasks of a killed build as it planned them; a shard of which no file is left needs none."""
    if not unfinished:
        return ()
    there = set(listing.paths)
    gone = {
        shard: frozenset(unit.slot for unit in units if unit.path not in there) for shard, units in unfinished.items()
    }
    return tuple(
        ShardJob(shard, units, wanted.arrays, gone=gone[shard])
        for shard, units in sorted(unfinished.items())
        if len(gone[shard]) < len(units)
    )


def shuffled(paths: Iterable[str]) -> list[str]:
    """The paths in pseudo-random order: by the xxh3-64 of the path, so that a shard mixes patients."""
    return sorted(paths, key=lambda path: (xxhash.xxh3_64_intdigest(path.encode("utf-8", "surrogateescape")), path))


def _new_shards(files: Sequence[tuple[str, str]], first: int, rows_per_shard: int) -> dict[int, tuple[Unit, ...]]:
    """One slot a file, whole shards, from shard number `first` on."""
    starts = range(0, len(files), rows_per_shard)
    return {
        first + number: tuple(
            Unit(slot, path, why) for slot, (path, why) in enumerate(files[start : start + rows_per_shard])
        )
        for number, start in enumerate(starts)
    }


def place_frames(handed_back: Iterable[HandedBack], first: int, rows_per_shard: int) -> dict[int, tuple[Unit, ...]]:
    """Plan files whose number of frames is known into shards of their own, from shard number `first` on.

    Files that fit one shard are packed in order; a larger one takes consecutive shards by itself.
    """
    shards: dict[int, tuple[Unit, ...]] = {}
    used = rows_per_shard
    of_path = {file.unit.path: file for file in handed_back}  # each part of a file that has changed hands it back
    for unit, frames, digest in sorted(
        of_path.values(), key=lambda file: (file.frames > rows_per_shard, file.unit.path)
    ):
        if frames > rows_per_shard:
            for start in range(0, frames, rows_per_shard):
                stop = min(start + rows_per_shard, frames)
                shards[first + len(shards)] = (replace(unit, slot=0, first=start, stop=stop, digest=digest),)
            continue
        if used + frames > rows_per_shard:
            shards[first + len(shards)] = ()
            used = 0
        shard = first + len(shards) - 1
        slot = len(shards[shard])
        shards[shard] = (*shards[shard], replace(unit, slot=slot, first=0, stop=frames, digest=digest))
        used += frames
    return shards


def _added_arrays(known: Known, kept: Ledger, wanted: Fingerprints) -> tuple[ShardJob, ...]:
    """Tasks that add wanted arrays to shards that lack them."""
    names = {spec.name for spec in wanted.arrays}
    if names <= known.committed_arrays and all(names <= there for there in known.arrays.values()):
        return ()
    unread = {path for path, unread in zip(kept.paths, kept.unread().tolist(), strict=True) if unread}
    jobs = []
    for shard, paths in sorted(kept.live_slots().items()):
        there = known.arrays.get(shard, known.committed_arrays)
        missing = tuple(spec for spec in wanted.arrays if spec.name not in there)
        units = tuple(Unit(slot, path) for slot, path in sorted(paths.items()) if path not in unread)
        if missing and units:
            jobs.append(ShardJob(shard, units, missing, again=True))
    return tuple(jobs)


def _reasons(
    known: Known,
    resolved: Resolved,
    wanted: Fingerprints,
    fresh: Set[str],
    changed: Set[str],
    *,
    resumed: int,
    again: Sequence[ShardJob],
) -> list[str]:
    reasons = []
    if known.running and known.pending:
        left = f"{resumed:,} of {_count(len(known.pending), 'shard is', 'shards are')} left of it"
        reasons.append(f"a build is running ({known.running}): {left}")
    elif known.pending:
        reasons.append(f"a build was interrupted: it goes on, {_count(resumed, 'shard is', 'shards are')} left of it")
    if known.reading not in (None, wanted.reading):
        reasons.append(f"files are read with other settings or by another version: {len(fresh):,} are converted again")
    elif known.reading is None and not known.pending:
        reasons.append(f"first build: {_count(len(fresh), 'file', 'files')}")
    else:
        retried, changed = fresh & known.retried, fresh & changed
        reasons += _counted(len(retried), "rejected file is", "rejected files are", "tried again")
        reasons += _counted(len(fresh - retried - changed), "new file is", "new files are", "converted")
        reasons += _counted(len(changed), "changed file is", "changed files are", "converted")
    reasons += _counted(len(resolved.renamed), "file is", "files are", "renamed: the slices stay")
    reasons += _counted(len(resolved.vanished), "file is", "files are", "gone: with --prune the slices leave")
    for spec in wanted.arrays:
        shards = sum(spec in job.arrays for job in again)
        if shards:
            what = f"size {spec.size_px} is new or its windows have changed"
            reasons.append(f"{what}: {_count(shards, 'shard is', 'shards are')} converted for it")
    same_way = known.reading == wanted.reading
    if not again and same_way and {spec.name for spec in wanted.arrays} != known.committed_arrays:
        reasons.append("the wanted sizes or windows have changed: the commit names others, already converted")
    if known.table is not None and known.table != wanted.table:
        reasons.append("labels, classes or other settings of the table have changed: the table is written again")
    if not known.identified and not reasons:
        reasons.append("the cache is of format version 1: a commit gives it an identity")
    return reasons


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _counted(number: int, one: str, many: str, what: str) -> list[str]:
    return [f"{_count(number, one, many)} {what}"] if number else []

"""Decide what to build and why; pure functions without input and output."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from pipeline.cache.ledger import Ledger
from pipeline.dicom.records import Unit
from pipeline.planning.changes import Resolved
from pipeline.planning.jobs import HandedBack, ShardJob
from pipeline.planning.known import Known
from pipeline.planning.reasons import Work, reason_to_read, reasons_to_build
from pipeline.planning.stages import Fingerprints
from pipeline.source.listing import Listing


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build will do.

    Attributes:
        resolved: which files are kept and which are converted.
        pending: shard -> units of each uncommitted shard, to be stored before the first is written.
        jobs: the tasks, in order.
        reasons: why, in words; empty if there is nothing to do.
        notes: the estimated cost, and what is kept because the cache was built with it.
        compared: paths of the files that were read to decide this.
    """

    resolved: Resolved
    pending: dict[int, tuple[Unit, ...]]
    jobs: tuple[ShardJob, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()

    @property
    def commit(self) -> bool:
        """Whether the build makes a new commit, with or without tasks."""
        return bool(self.reasons)

    @property
    def slices_expected(self) -> int:
        """Number of slices to convert, counting a file as one."""
        return sum(len(job.paths()) for job in self.jobs)

    def as_lines(self) -> list[str]:
        """Return the reasons and the notes, one line each."""
        return [*(self.reasons or ("nothing to do: the cache is up to date",)), *self.notes]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON data: reasons, files, and what each task reads and writes."""
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


def make(
    listing: Listing,
    known: Known,
    resolved: Resolved,
    wanted: Fingerprints,
    rows_per_shard: int,
) -> Plan:
    """Plan the shards and tasks.

    Args:
        listing: the files in the source.
        known: the state of the cache.
        resolved: the difference between `listing` and `known.ledger`.
        wanted: fingerprints that the build must produce.
        rows_per_shard: rows of a shard.
    """
    unfinished = known.unfinished()
    planned = {unit.path for units in unfinished.values() for unit in units}
    changed = {listing.paths[line] for line in resolved.changed}
    paths = [listing.paths[line] for line in resolved.fresh]
    why = {path: reason_to_read(known, wanted, path, changed) for path in paths}
    fresh = [path for path in why if path not in planned]
    fresh = fresh if listing.ordered else shuffled(fresh)
    new = _new_shards([(path, why[path]) for path in fresh], known.next_shard, rows_per_shard)
    added = _jobs_that_add_arrays(known, resolved.kept, wanted)
    resumed = _resumed_jobs(listing, unfinished, wanted)
    jobs = (*added, *resumed, *(ShardJob(shard, units, wanted.arrays) for shard, units in new.items()))
    work = Work(set(fresh), changed, len(resumed), added)
    reasons = tuple(reasons_to_build(known, resolved, wanted, work))
    return Plan(resolved, {**known.pending, **new}, jobs, reasons)


def _resumed_jobs(
    listing: Listing, unfinished: Mapping[int, tuple[Unit, ...]], wanted: Fingerprints
) -> tuple[ShardJob, ...]:
    """Return the tasks that a killed build had planned, except for shards whose files have all vanished."""
    if not unfinished:
        return ()
    existing = set(listing.paths)
    missing = {
        shard: frozenset(unit.slot for unit in units if unit.path not in existing)
        for shard, units in unfinished.items()
    }
    return tuple(
        ShardJob(shard, units, wanted.arrays, missing=missing[shard])
        for shard, units in sorted(unfinished.items())
        if len(missing[shard]) < len(units)
    )


def shuffled(paths: Iterable[str]) -> list[str]:
    """Return the paths ordered by their xxh3-64, so that a shard mixes patients."""
    return sorted(paths, key=lambda path: (xxhash.xxh3_64_intdigest(path.encode("utf-8", "surrogateescape")), path))


def _new_shards(files: Sequence[tuple[str, str]], first: int, rows_per_shard: int) -> dict[int, tuple[Unit, ...]]:
    """Assign files to new shards, one slot each, starting with shard number `first`."""
    starts = range(0, len(files), rows_per_shard)
    return {
        first + number: tuple(
            Unit(slot, path, why) for slot, (path, why) in enumerate(files[start : start + rows_per_shard])
        )
        for number, start in enumerate(starts)
    }


def place_frames(handed_back: Iterable[HandedBack], first: int, rows_per_shard: int) -> dict[int, tuple[Unit, ...]]:
    """Assign files with a known number of frames to new shards, starting with shard number `first`.

    Files that fit one shard are packed in order; a larger file gets consecutive shards of its own.
    """
    shards: dict[int, tuple[Unit, ...]] = {}
    used = rows_per_shard
    of_path = {file.unit.path: file for file in handed_back}  # every part of a changed file hands it back
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


def _jobs_that_add_arrays(known: Known, kept: Ledger, wanted: Fingerprints) -> tuple[ShardJob, ...]:
    """Return tasks that add wanted arrays to shards that lack them."""
    names = {spec.name for spec in wanted.arrays}
    if names <= known.committed_arrays and all(names <= present for present in known.arrays.values()):
        return ()
    unread = {path for path, unread in zip(kept.paths, kept.unread().tolist(), strict=True) if unread}
    jobs = []
    for shard, paths in sorted(kept.live_slots().items()):
        present = known.arrays.get(shard, known.committed_arrays)
        missing = tuple(spec for spec in wanted.arrays if spec.name not in present)
        units = tuple(Unit(slot, path) for slot, path in sorted(paths.items()) if path not in unread)
        if missing and units:
            jobs.append(ShardJob(shard, units, missing, adds_arrays=True))
    return tuple(jobs)

"""Decide what to build and why, from what is there and what is wanted; pure, reads and writes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from pipeline.cache.ledger import Ledger
from pipeline.dicom.records import Unit
from pipeline.planning.changes import Resolved
from pipeline.planning.jobs import HandedBack, ShardJob
from pipeline.planning.known import Known
from pipeline.planning.reasons import reasons_of, why_read
from pipeline.planning.stages import Fingerprints
from pipeline.source.listing import Listing


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
    why = {path: why_read(known, wanted, path, changed) for path in paths}
    fresh = [path for path in why if path not in planned]
    fresh = fresh if listing.ordered else shuffled(fresh)
    new = _new_shards([(path, why[path]) for path in fresh], known.next_shard, rows_per_shard)
    again = _added_arrays(known, resolved.kept, wanted)
    resumed = _left_jobs(listing, unfinished, wanted)
    jobs = (*again, *resumed, *(ShardJob(shard, units, wanted.arrays) for shard, units in new.items()))
    reasons = tuple(reasons_of(known, resolved, wanted, set(fresh), changed, resumed=len(resumed), again=again))
    return Plan(resolved, tuple(compared), {**known.pending, **new}, jobs, reasons)


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

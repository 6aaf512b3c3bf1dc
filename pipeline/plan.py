"""This file decides what to build and why, from what is there and what is wanted; it reads and writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from pipeline.ledger import UNKNOWN_TIME, Ledger, empty_ledger
from pipeline.records import Reject, Unit
from pipeline.sources import Listing
from pipeline.stages import ArraySpec, Fingerprints


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One task: a shard to fill, or to add arrays to.

    Attributes:
        units: what to read, in slot order.
        arrays: what to write.
        again: the shard has a record already, rows and frames are as it says, and only these arrays are added.
        refused: slots whose file killed a worker -> the reject that says so.
    """

    shard: int
    units: tuple[Unit, ...]
    arrays: tuple[ArraySpec, ...]
    again: bool = False
    refused: tuple[tuple[int, Reject], ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """How the files that are there differ from those that are known; lines of the listing and of the ledger.

    Attributes:
        same: (n, 2) int64, equal size and time: (listing line, ledger line).
        unsure: as `same`, equal size and another or an unknown time: the content must be compared.
        resized: as `same`, another size.
        new: listing lines of unknown paths.
        vanished: ledger lines whose path is gone.
        suspects: those of `new` whose size and time equal a vanished line's: perhaps renamed.
    """

    same: np.ndarray
    unsure: np.ndarray
    resized: np.ndarray
    new: np.ndarray
    vanished: np.ndarray
    suspects: np.ndarray

    def lines_to_read(self) -> list[int]:
        """Listing lines whose content must be known before it can be said what to build."""
        return sorted([*self.unsure[:, 0].tolist(), *self.suspects.tolist()])


def compare(listing: Listing, ledger: Ledger, check_content: bool = False) -> Difference:
    """Compare by path, size and time; with `check_content` no time is believed."""
    if not check_content and _equal(listing, ledger):
        lines = np.arange(len(ledger))
        return _difference(np.stack([lines, lines], 1))
    known = ledger.index()
    matches = np.array([known.pop(path, -1) for path in listing.paths], np.int64)
    found = np.flatnonzero(matches >= 0)
    there, was = found, matches[found]
    sized = listing.sizes[there] == ledger.sizes[was]
    timed = (listing.mtimes_ns[there] == ledger.mtimes_ns[was]) & (not check_content)
    pairs = np.stack([there, was], 1)
    new = np.flatnonzero(matches < 0)
    vanished = np.array(sorted(known.values()), np.int64)
    return Difference(
        same=pairs[sized & timed],
        unsure=pairs[sized & ~timed],
        resized=pairs[~sized],
        new=new,
        vanished=vanished,
        suspects=_suspects(listing, ledger, new, vanished),
    )


def _equal(listing: Listing, ledger: Ledger) -> bool:
    return (
        len(listing.paths) == len(ledger)
        and np.array_equal(listing.sizes, ledger.sizes)
        and np.array_equal(listing.mtimes_ns, ledger.mtimes_ns)
        and listing.paths == ledger.paths
    )


def _difference(same: np.ndarray) -> Difference:
    pairs, lines = np.empty((0, 2), np.int64), np.empty(0, np.int64)
    return Difference(same, pairs, pairs, lines, lines, lines)


def _suspects(listing: Listing, ledger: Ledger, new: np.ndarray, vanished: np.ndarray) -> np.ndarray:
    stamps = set(zip(ledger.sizes[vanished].tolist(), ledger.mtimes_ns[vanished].tolist(), strict=True))
    found = [
        line
        for line in new.tolist()
        if {(size := int(listing.sizes[line]), int(listing.mtimes_ns[line])), (size, UNKNOWN_TIME)} & stamps
    ]
    return np.array(found, np.int64)


@dataclass(frozen=True, slots=True)
class Content:
    """What a file that was read to compare it turned out to be."""

    size: int
    mtime_ns: int
    digest: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Settled:
    """The difference once contents are known.

    Attributes:
        kept: ledger of the files whose slices stay, with today's paths and times.
        fresh: listing lines to be converted: new files and new contents.
        changed: how many of `fresh` have a known path.
        touched: how many of `kept` have another time.
        renamed: (old path, new path) of those of `kept` that have another path.
        vanished: paths that are gone.
    """

    kept: Ledger
    fresh: list[int]
    changed: int
    touched: int
    renamed: list[tuple[str, str]]
    vanished: list[str]


def settle(listing: Listing, ledger: Ledger, difference: Difference, contents: Mapping[int, Content]) -> Settled:
    """Decide with the contents of `difference.lines_to_read()` which files stay.

    A line without content could not be read: it counts as fresh, and the build will say what is wrong with it.
    """
    kept = [tuple(pair) for pair in difference.same.tolist()]
    fresh = [int(line) for line, _ in difference.resized]
    times: dict[int, int] = {}
    for line, was in difference.unsure.tolist():
        content = contents.get(line)
        if content and content.digest == _digest(ledger, was):
            kept.append((line, was))
            times[was] = content.mtime_ns
        else:
            fresh.append(line)
    changed = len(fresh)
    gone = _by_digest(ledger, difference.vanished.tolist())
    renamed = []
    for line in difference.new.tolist():
        content = contents.get(line)
        candidates = gone.get((content.size, *content.digest)) if content else None
        if candidates:
            was = candidates.pop(0)
            kept.append((line, was))
            times[was] = content.mtime_ns if content else UNKNOWN_TIME
            renamed.append((ledger.paths[was], listing.paths[line]))
        else:
            fresh.append(line)
    return Settled(
        kept=_kept_ledger(listing, ledger, kept, times),
        fresh=sorted(fresh),
        changed=changed,
        touched=len(times) - len(renamed),
        renamed=renamed,
        vanished=[ledger.paths[was] for lines in gone.values() for was in lines],
    )


def _by_digest(ledger: Ledger, lines: list[int]) -> dict[tuple[int, int, int], list[int]]:
    found: dict[tuple[int, int, int], list[int]] = {}
    for line in lines:
        found.setdefault((int(ledger.sizes[line]), *_digest(ledger, line)), []).append(line)
    return found


def _digest(ledger: Ledger, line: int) -> tuple[int, int]:
    return int(ledger.digests[line, 0]), int(ledger.digests[line, 1])


def _kept_ledger(listing: Listing, ledger: Ledger, kept: list[tuple[int, int]], times: Mapping[int, int]) -> Ledger:
    kept = sorted(kept, key=lambda pair: listing.paths[pair[0]])
    lines = np.array([was for _, was in kept], np.int64)
    taken = ledger.take(lines)
    mtimes_ns = np.array([times.get(was, int(old)) for (_, was), old in zip(kept, taken.mtimes_ns, strict=True)])
    paths = [listing.paths[line] for line, _ in kept]
    return Ledger(paths, taken.sizes, mtimes_ns.astype(np.int64), taken.digests, taken.shards, taken.slots, taken.parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build does.

    Attributes:
        settled: which files stay and which are read.
        pending: shard -> units of every shard that is to be filled, to be kept before the first is written.
        jobs: the tasks, in order.
        reasons: why, in plain words; empty where nothing is to be done.
        commit: whether a new commit is due, with or without tasks.
    """

    settled: Settled
    pending: dict[int, tuple[Unit, ...]]
    jobs: tuple[ShardJob, ...]
    reasons: tuple[str, ...]
    commit: bool

    @property
    def slices_expected(self) -> int:
        return sum(len(job.units) for job in self.jobs)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data: reasons, and what each task reads and writes."""
        return {
            "work_pending": self.commit,
            "reasons": list(self.reasons),
            "renamed": [list(pair) for pair in self.settled.renamed],
            "vanished": self.settled.vanished,
            "touched": self.settled.touched,
            "tasks": [
                {
                    "shard": job.shard,
                    "files": [unit.path for unit in job.units],
                    "arrays": [spec.images_path for spec in job.arrays],
                }
                for job in self.jobs
            ],
        }


@dataclass(frozen=True, slots=True)
class Known:
    """What is there.

    Attributes:
        ledger: files whose slices lie in finished shards, of the current commit and of a build that was killed.
        reading: the fingerprint of reading of those shards, None before the first build.
        committed_arrays: names of the arrays of the current commit; they hold every shard of its ledger.
        table: the fingerprint of the current commit's table, None before the first commit.
        arrays: shard -> names of the arrays that hold it, for shards that the current commit does not vouch for.
        unfinished: shard -> units of a killed build's shards that are still to be filled.
        next_shard: the first shard number that was never given out.
        resumed: whether a killed build left shards, finished or not.
    """

    ledger: Ledger
    reading: str | None
    committed_arrays: frozenset[str]
    table: str | None
    arrays: Mapping[int, frozenset[str]]
    unfinished: Mapping[int, tuple[Unit, ...]]
    next_shard: int
    resumed: bool


def make(listing: Listing, known: Known, settled: Settled, wanted: Fingerprints, rows_per_shard: int) -> Plan:
    """Plan the shards and tasks.

    Args:
        settled: made against `usable(known, wanted)`.
    """
    resumable = known.unfinished if known.reading == wanted.reading else {}
    planned = {unit.path for units in resumable.values() for unit in units}
    paths = [listing.paths[line] for line in settled.fresh if listing.paths[line] not in planned]
    fresh = _new_shards(paths if listing.ordered else shuffled(paths), known.next_shard, rows_per_shard)
    pending = {**resumable, **fresh}
    again = _added_arrays(known, settled.kept, wanted)
    jobs = (*again, *(ShardJob(shard, units, wanted.arrays) for shard, units in sorted(pending.items())))
    reasons = tuple(_reasons(known, settled, wanted, len(paths), len(resumable), again))
    return Plan(settled, pending, jobs, reasons, commit=bool(reasons))


def usable(known: Known, wanted: Fingerprints) -> Ledger:
    """The ledger that files are compared with: empty where they must all be read in another way."""
    return known.ledger if known.reading in (None, wanted.reading) else empty_ledger()


def shuffled(paths: Sequence[str]) -> list[str]:
    """The paths in pseudo-random order: by the xxh3-64 of the path, so that a shard mixes patients."""
    return sorted(paths, key=lambda path: (xxhash.xxh3_64_intdigest(path.encode("utf-8", "surrogateescape")), path))


def _new_shards(paths: Sequence[str], first: int, rows_per_shard: int) -> dict[int, tuple[Unit, ...]]:
    """One slot a file, whole shards, from shard number `first` on."""
    starts = range(0, len(paths), rows_per_shard)
    return {
        first + number: tuple(Unit(slot, path) for slot, path in enumerate(paths[start : start + rows_per_shard]))
        for number, start in enumerate(starts)
    }


def place_frames(
    handed_back: Sequence[tuple[str, int]], first: int, rows_per_shard: int
) -> dict[int, tuple[Unit, ...]]:
    """Plan files whose number of frames is known into shards of their own, from shard number `first` on.

    Files that fit one shard are packed in order; a larger one takes consecutive shards by itself.
    """
    shards: dict[int, tuple[Unit, ...]] = {}
    used = rows_per_shard
    for path, frames in sorted(handed_back, key=lambda file: (file[1] > rows_per_shard, file[0])):
        if frames > rows_per_shard:
            for start in range(0, frames, rows_per_shard):
                shards[first + len(shards)] = (Unit(0, path, start, min(start + rows_per_shard, frames)),)
            continue
        if used + frames > rows_per_shard:
            shards[first + len(shards)] = ()
            used = 0
        shard = first + len(shards) - 1
        shards[shard] = (*shards[shard], Unit(len(shards[shard]), path, 0, frames))
        used += frames
    return shards


def _added_arrays(known: Known, kept: Ledger, wanted: Fingerprints) -> tuple[ShardJob, ...]:
    """Tasks that add wanted arrays to shards that lack them."""
    units: dict[int, list[Unit]] = {}
    columns = zip(kept.paths, kept.shards.tolist(), kept.slots.tolist(), kept.parts.tolist(), strict=True)
    for path, shard, slot, parts in columns:
        for part in range(parts):
            units.setdefault(shard + part, []).append(Unit(slot, path))
    jobs = []
    for shard, found in sorted(units.items()):
        there = known.arrays.get(shard, known.committed_arrays)
        missing = tuple(spec for spec in wanted.arrays if spec.name not in there)
        if missing:
            found.sort(key=lambda unit: unit.slot)
            jobs.append(ShardJob(shard, tuple(found), missing, again=True))
    return tuple(jobs)


def _reasons(
    known: Known, settled: Settled, wanted: Fingerprints, fresh: int, resumed: int, again: Sequence[ShardJob]
) -> list[str]:
    reasons = []
    new = max(fresh - settled.changed, 0)
    if known.reading not in (None, wanted.reading):
        reasons.append(f"files are to be read with other settings or by another version: all {fresh:,} are read again")
    elif known.table is None and not known.resumed:
        reasons.append(f"first build: {fresh:,} files")
    else:
        if known.resumed:
            reasons.append(f"a build was interrupted: it goes on, {resumed:,} shards are left of it")
        for number, what in ((new, "new"), (min(settled.changed, fresh), "changed")):
            if number:
                reasons.append(f"{number:,} {what} {'file is' if number == 1 else 'files are'} converted")
    for number, what in ((len(settled.renamed), "renamed: slices stay"), (len(settled.vanished), "gone: slices leave")):
        if number:
            reasons.append(f"{number:,} {'file is' if number == 1 else 'files are'} {what}")
    for spec in wanted.arrays:
        shards = sum(spec in job.arrays for job in again)
        if shards:
            reasons.append(
                f"size {spec.size_px} is new or its windows have changed: {shards:,} shards are converted for it"
            )
    if not again and known.table is not None and {spec.name for spec in wanted.arrays} != known.committed_arrays:
        reasons.append("the wanted sizes have changed: the commit names others")
    if known.table is not None and known.table != wanted.table:
        reasons.append("labels, classes or other settings of the table have changed: the table is written again")
    return reasons

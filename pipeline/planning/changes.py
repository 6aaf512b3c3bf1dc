"""Find out how the files that are there differ from those that are known; pure, reads and writes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.cache.ledger import UNKNOWN_TIME, Ledger
from pipeline.source.listing import Listing


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


def compare(listing: Listing, ledger: Ledger, *, check_content: bool = False) -> Difference:
    """Compare by path, size and time; with `check_content` no time is believed."""
    if not check_content and _equal(listing, ledger) and not ledger.unread().any():
        lines = np.arange(len(ledger))
        return _difference(np.stack([lines, lines], 1))
    known = ledger.index()
    matches = np.array([known.pop(path, -1) for path in listing.paths], np.int64)
    found = np.flatnonzero(matches >= 0)
    there, was = found, matches[found]
    unread = ledger.unread()[was]
    sized = (listing.sizes[there] == ledger.sizes[was]) | unread
    timed = (listing.mtimes_ns[there] == ledger.mtimes_ns[was]) & (not check_content) & ~unread
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


_UNREAD = (0, 0)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The difference once contents are known.

    Attributes:
        kept: ledger of the files whose slices stay, with today's paths and times.
        fresh: listing lines to be converted: new files and new contents.
        changed: those of `fresh` that have a known path.
        touched: how many of `kept` have another time.
        renamed: (old path, new path) of those of `kept` that have another path.
        vanished: paths that are gone.
    """

    kept: Ledger
    fresh: list[int]
    changed: frozenset[int]
    touched: int
    renamed: list[tuple[str, str]]
    vanished: list[str]


def resolve(listing: Listing, ledger: Ledger, difference: Difference, contents: Mapping[int, Content]) -> Resolved:
    """Decide with the contents of `difference.lines_to_read()` which files stay.

    A line without content could not be read: it counts as fresh, and the build will say what is wrong with it, unless
    it has said so before.
    """
    kept = [tuple(pair) for pair in difference.same.tolist()]
    fresh = [int(line) for line, _ in difference.resized]
    times: dict[int, int] = {}
    for line, was in difference.unsure.tolist():
        content = contents.get(line)
        digest = content.digest if content else _UNREAD
        if digest == _digest(ledger, was):
            kept.append((line, was))
            if content and content.mtime_ns != ledger.mtimes_ns[was]:
                times[was] = content.mtime_ns
        else:
            fresh.append(line)
    changed = frozenset(fresh)
    touched = len(times)
    renamed, vanished = match_renamed(ledger, difference, contents)
    for line, was in renamed.items():
        kept.append((line, was))
        times[was] = contents[line].mtime_ns
    fresh += [line for line in difference.new.tolist() if line not in renamed]
    return Resolved(
        kept=_kept_ledger(listing, ledger, kept, times),
        fresh=sorted(fresh),
        changed=changed,
        touched=touched,
        renamed=[(ledger.paths[was], listing.paths[line]) for line, was in renamed.items()],
        vanished=[ledger.paths[was] for was in vanished],
    )


def match_renamed(
    ledger: Ledger, difference: Difference, contents: Mapping[int, Content]
) -> tuple[dict[int, int], list[int]]:
    """Find new paths that hold the content of a vanished one.

    Returns:
        listing line -> ledger line of each; the ledger lines that are gone for good.
    """
    gone: dict[tuple[int, int, int], list[int]] = {}
    for was in difference.vanished.tolist():
        gone.setdefault((int(ledger.sizes[was]), *_digest(ledger, was)), []).append(was)
    renamed = {}
    for line in difference.suspects.tolist():
        content = contents.get(line)
        candidates = gone.get((content.size, *content.digest)) if content else None
        if candidates:
            renamed[line] = candidates.pop(0)
    return renamed, sorted(was for lines in gone.values() for was in lines)


def _digest(ledger: Ledger, line: int) -> tuple[int, int]:
    return int(ledger.digests[line, 0]), int(ledger.digests[line, 1])


def _kept_ledger(listing: Listing, ledger: Ledger, kept: list[tuple[int, int]], times: Mapping[int, int]) -> Ledger:
    kept = sorted(kept, key=lambda pair: listing.paths[pair[0]])
    lines = np.array([was for _, was in kept], np.int64)
    taken = ledger.take(lines)
    mtimes_ns = np.array([times.get(was, int(old)) for (_, was), old in zip(kept, taken.mtimes_ns, strict=True)])
    paths = [listing.paths[line] for line, _ in kept]
    return Ledger(paths, taken.sizes, mtimes_ns.astype(np.int64), taken.digests, taken.shards, taken.slots, taken.parts)

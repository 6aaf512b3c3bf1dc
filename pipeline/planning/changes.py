"""Compare the files in the source with those that the cache knows; pure functions without input and output."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.cache.ledger import UNKNOWN_TIME, Ledger
from pipeline.source.listing import Listing


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between a listing and a ledger, as line numbers, int64.

    Attributes:
        same: (n, 2), pairs of a listing line and a ledger line with equal path, size and time.
        unsure: (n, 2), the same size but another or an unknown time, or a file that could not be read before: contents
            must be compared.
        resized: (n, 2), another size.
        new: (n,), listing lines with an unknown path.
        vanished: (n,), ledger lines whose path no longer exists.
        maybe_renamed: (n,), those of `new` with the size and time of a vanished line.
    """

    same: np.ndarray
    unsure: np.ndarray
    resized: np.ndarray
    new: np.ndarray
    vanished: np.ndarray
    maybe_renamed: np.ndarray

    def lines_to_read(self) -> list[int]:
        """Return the listing lines whose content must be read to decide what to build."""
        return sorted([*self.unsure[:, 0].tolist(), *self.maybe_renamed.tolist()])


def compare(listing: Listing, ledger: Ledger, *, check_content: bool = False) -> Difference:
    """Compare by path, size and time; with `check_content`, treat all times as unknown."""
    if not check_content and _equal(listing, ledger) and not ledger.unread().any():
        lines = np.arange(len(ledger))
        return _difference(np.stack([lines, lines], 1))
    known = ledger.index()
    matches = np.array([known.pop(path, -1) for path in listing.paths], np.int64)
    lines = np.flatnonzero(matches >= 0)
    known_lines = matches[lines]
    unread = ledger.unread()[known_lines]
    same_size = (listing.sizes[lines] == ledger.sizes[known_lines]) | unread
    same_time = (listing.mtimes_ns[lines] == ledger.mtimes_ns[known_lines]) & (not check_content) & ~unread
    pairs = np.stack([lines, known_lines], 1)
    new = np.flatnonzero(matches < 0)
    vanished = np.array(sorted(known.values()), np.int64)
    return Difference(
        same=pairs[same_size & same_time],
        unsure=pairs[same_size & ~same_time],
        resized=pairs[~same_size],
        new=new,
        vanished=vanished,
        maybe_renamed=_maybe_renamed(listing, ledger, new, vanished),
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


def _maybe_renamed(listing: Listing, ledger: Ledger, new: np.ndarray, vanished: np.ndarray) -> np.ndarray:
    stamps = set(zip(ledger.sizes[vanished].tolist(), ledger.mtimes_ns[vanished].tolist(), strict=True))
    found = [
        line
        for line in new.tolist()
        if {(size := int(listing.sizes[line]), int(listing.mtimes_ns[line])), (size, UNKNOWN_TIME)} & stamps
    ]
    return np.array(found, np.int64)


@dataclass(frozen=True, slots=True)
class Content:
    """Size, time and digest of a file that was read to compare it.

    Attributes:
        digest: xxh3-128 as two 64-bit numbers.
    """

    size: int
    mtime_ns: int
    digest: tuple[int, int]


_UNREAD = (0, 0)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The difference after contents were compared.

    Attributes:
        kept: ledger of the files whose slices are kept, with their current paths and times.
        fresh: listing lines to convert: new files and changed contents.
        changed: those of `fresh` with a known path.
        touched: number of files with another time and the same content.
        renamed: (old path, new path) of files in `kept` that were renamed.
        vanished: paths that no longer exist.
    """

    kept: Ledger
    fresh: list[int]
    changed: frozenset[int]
    touched: int
    renamed: list[tuple[str, str]]
    vanished: list[str]


def resolve(listing: Listing, ledger: Ledger, difference: Difference, contents: Mapping[int, Content]) -> Resolved:
    """Decide which files are kept, given the contents of `difference.lines_to_read()`.

    A line without content could not be read. It counts as fresh, so that the build reports the error, unless a previous
    build has done so.
    """
    kept = [tuple(pair) for pair in difference.same.tolist()]
    fresh = [int(line) for line, _ in difference.resized]
    times: dict[int, int] = {}
    for line, known_line in difference.unsure.tolist():
        content = contents.get(line)
        digest = content.digest if content else _UNREAD
        if digest == _digest(ledger, known_line):
            kept.append((line, known_line))
            if content and content.mtime_ns != ledger.mtimes_ns[known_line]:
                times[known_line] = content.mtime_ns
        else:
            fresh.append(line)
    changed = frozenset(fresh)
    touched = len(times)
    renamed, vanished = match_renamed(ledger, difference, contents)
    for line, known_line in renamed.items():
        kept.append((line, known_line))
        times[known_line] = contents[line].mtime_ns
    fresh += [line for line in difference.new.tolist() if line not in renamed]
    return Resolved(
        kept=_kept_ledger(listing, ledger, kept, times),
        fresh=sorted(fresh),
        changed=changed,
        touched=touched,
        renamed=[(ledger.paths[known_line], listing.paths[line]) for line, known_line in renamed.items()],
        vanished=[ledger.paths[known_line] for known_line in vanished],
    )


def match_renamed(
    ledger: Ledger, difference: Difference, contents: Mapping[int, Content]
) -> tuple[dict[int, int], list[int]]:
    """Match new paths to vanished ones with the same content.

    Returns:
        The listing line -> ledger line of each renamed file, and the remaining vanished ledger lines.
    """
    vanished: dict[tuple[int, int, int], list[int]] = {}
    for known_line in difference.vanished.tolist():
        key = (int(ledger.sizes[known_line]), *_digest(ledger, known_line))
        vanished.setdefault(key, []).append(known_line)
    renamed = {}
    for line in difference.maybe_renamed.tolist():
        content = contents.get(line)
        candidates = vanished.get((content.size, *content.digest)) if content else None
        if candidates:
            renamed[line] = candidates.pop(0)
    return renamed, sorted(known_line for lines in vanished.values() for known_line in lines)


def _digest(ledger: Ledger, line: int) -> tuple[int, int]:
    return int(ledger.digests[line, 0]), int(ledger.digests[line, 1])


def _kept_ledger(listing: Listing, ledger: Ledger, kept: list[tuple[int, int]], times: Mapping[int, int]) -> Ledger:
    kept = sorted(kept, key=lambda pair: listing.paths[pair[0]])
    lines = np.array([known_line for _, known_line in kept], np.int64)
    taken = ledger.take(lines)
    mtimes_ns = np.array(
        [times.get(known_line, int(time)) for (_, known_line), time in zip(kept, taken.mtimes_ns, strict=True)]
    )
    paths = [listing.paths[line] for line, _ in kept]
    return Ledger(paths, taken.sizes, mtimes_ns.astype(np.int64), taken.digests, taken.shards, taken.slots, taken.parts)

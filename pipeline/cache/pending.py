"""Keep the plan of rows of a build that has not committed yet, and give out shard numbers once."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.cache.attributes import MAX_SHARDS
from pipeline.cache.commits import Commit
from pipeline.cache.files import canonical, read_checked, with_checksum, write_atomic
from pipeline.cache.parsing import parse
from pipeline.cache.paths import Cache
from pipeline.dicom.records import Unit
from pipeline.errors import CacheError

SHARD = re.compile(r"0|[1-9][0-9]{0,7}")


@dataclass(frozen=True, slots=True)
class Pending:
    """A plan of rows that was kept before its first shard was written.

    Attributes:
        head: id of the commit that it builds on, "" for the first build.
        reading: the fingerprint of reading that it was made for.
        shards: shard -> its units; a shard is done when its record is there.
    """

    head: str
    reading: str
    shards: Mapping[int, tuple[Unit, ...]]


def read_pending(cache: Cache) -> Pending | None:
    """The plan of rows that a build has not committed, None where there is none.

    Raises:
        CacheError: damaged.
    """
    file = cache.pending_file
    try:
        stored = parse(_StoredPending, json.loads(read_checked(file)))
        return Pending(
            stored.head, stored.reading, dict(_units_of(shard, lines) for shard, lines in stored.shards.items())
        )
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{file}: damaged, {error}; run: pipeline verify --repair") from error


class _UnitLine(NamedTuple):
    path: str
    why: str
    first: int
    stop: int
    digest: str


@dataclass(frozen=True, slots=True)
class _StoredPending:
    """The plan's own form on disk."""

    head: str
    reading: str
    shards: Mapping[str, tuple[_UnitLine, ...]]


def _units_of(shard: str, lines: tuple[_UnitLine, ...]) -> tuple[int, tuple[Unit, ...]]:
    if not SHARD.fullmatch(shard) or int(shard) >= MAX_SHARDS:
        raise ValueError(f"{shard[:20]!r} is not a shard number")
    return int(shard), tuple(Unit(slot, *line) for slot, line in enumerate(lines))


def write_pending(cache: Cache, pending: Pending) -> None:
    """Write the pending plan, with its checksum."""
    shards = {
        str(shard): [[unit.path, unit.why, unit.first, unit.stop, unit.digest] for unit in units]
        for shard, units in pending.shards.items()
    }
    content = {"head": pending.head, "reading": pending.reading, "shards": shards}
    write_atomic(cache.pending_file, with_checksum(canonical(content)))


def clear_pending(cache: Cache) -> None:
    """Remove the pending plan, if there is one."""
    cache.pending_file.unlink(missing_ok=True)


def is_committed(pending: Pending, head: Commit | None) -> bool:
    """Whether a commit holds the work of this plan: its builder was killed before it could remove the plan."""
    return head is not None and head.id != pending.head and head.private.reading == pending.reading


def first_free_shard(cache: Cache, head: Commit | None, pending: Pending | None) -> int:
    """The first shard number that was never given out: not in a commit, a record or a pending plan."""
    committed = head.private.next_shard if head else 0
    return max([committed - 1, *cache.recorded_shards()[-1:], *(pending.shards if pending else ())]) + 1

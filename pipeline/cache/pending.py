"""Store the row plan of a build that has not committed yet, and hand out each shard number only once."""

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
    """A row plan, stored before its first shard is written.

    Attributes:
        head: id of the commit that it builds on, "" for the first build.
        reading: fingerprint of the reading settings that it was made for.
        shards: shard -> its units; a shard is done once its done-record exists.
    """

    head: str
    reading: str
    shards: Mapping[int, tuple[Unit, ...]]


def read_pending(cache: Cache) -> Pending | None:
    """Read the row plan of a build that has not committed; return None if there is none.

    Raises:
        CacheError: it is damaged.
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
    """The on-disk form of the plan."""

    head: str
    reading: str
    shards: Mapping[str, tuple[_UnitLine, ...]]


def _units_of(shard: str, lines: tuple[_UnitLine, ...]) -> tuple[int, tuple[Unit, ...]]:
    if not SHARD.fullmatch(shard) or int(shard) >= MAX_SHARDS:
        raise ValueError(f"{shard[:20]!r} is not a shard number")
    return int(shard), tuple(Unit(slot, *line) for slot, line in enumerate(lines))


def write_pending(cache: Cache, pending: Pending) -> None:
    """Write the pending plan, with a checksum."""
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
    """Return whether the plan was committed after all: its builder was killed before it could remove the plan."""
    return head is not None and head.id != pending.head and head.private.reading == pending.reading


def first_free_shard(cache: Cache, head: Commit | None, pending: Pending | None) -> int:
    """Return the first shard number that was never assigned in a commit, a done-record or a pending plan."""
    committed = head.private.next_shard if head else 0
    return max([committed - 1, *cache.recorded_shards()[-1:], *(pending.shards if pending else ())]) + 1

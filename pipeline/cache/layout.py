"""The working files of a build, beside the commits: shards, done-records and the pending plan."""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.cache.attributes import MAX_SHARDS
from pipeline.cache.commits import Commit
from pipeline.cache.files import (
    ASIDE,
    PARTIAL,
    PRIVATE,
    canonical,
    is_partial_name,
    read_checked,
    with_checksum,
    write_atomic,
)
from pipeline.cache.parsing import parse
from pipeline.cache.shard_record import ShardRecord
from pipeline.dicom.records import Unit
from pipeline.errors import CacheError
from pipeline.planning.stages import ArraySpec

SHARD = re.compile(r"0|[1-9][0-9]{0,7}")
RECORD = re.compile(r"(0|[1-9][0-9]{0,7})\.json")
MAX_RECORD_BYTES = 1 << 30
# What this program alone writes to; anything else below a cache is somebody's.
OWN_FOLDERS = ("images", "sums", "tables", "commits", PRIVATE)


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


def images_file(root: Path, spec: ArraySpec, shard: int) -> Path:
    """Return the shard file of an image array."""
    return root / spec.images_path / "c" / str(shard) / "0" / "0" / "0"


def sums_file(root: Path, spec: ArraySpec, shard: int) -> Path:
    """Return the chunk file of an array of sums."""
    return root / spec.sums_path / "c" / str(shard) / "0" / "0"


def record_file(root: Path, shard: int) -> Path:
    """Return the file of a shard's done-record."""
    return root / PRIVATE / "shards" / f"{shard}.json"


def record_copy_file(root: Path, shard: int) -> Path:
    """The second copy of a done-record, from which `verify --repair` mends the first."""
    return root / PRIVATE / "records" / f"{shard}.z"


def read_record(root: Path, shard: int) -> ShardRecord | None:
    """The done-record of a shard, None where it was never finished.

    Raises:
        CacheError: damaged.
    """
    file = record_file(root, shard)
    try:
        return _decode_record(read_checked(file), shard)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{file}: damaged, {error}; run: pipeline verify --repair") from error


def read_record_copy(root: Path, shard: int) -> ShardRecord | None:
    """The second copy of a done-record, None where it is missing or damaged."""
    try:
        inflate = zlib.decompressobj()
        content = inflate.decompress(read_checked(record_copy_file(root, shard)), MAX_RECORD_BYTES)
        return _decode_record(content, shard)
    except (OSError, CacheError, ValueError, RecursionError, zlib.error):
        return None


def _decode_record(content: bytes, shard: int) -> ShardRecord:
    record = ShardRecord.of(json.loads(content))
    if record.shard != shard:
        raise ValueError(f"it is of shard {record.shard}")
    return record


def encode_record(record: ShardRecord) -> bytes:
    """The content of a shard's done-record: what was read for it and what every array holds of it."""
    return with_checksum(canonical(record.as_json()))


def encode_record_copy(record: ShardRecord) -> bytes:
    """The content of the record's second copy, a quarter of its size."""
    return with_checksum(zlib.compress(canonical(record.as_json()), 1))


def write_record(root: Path, record: ShardRecord) -> None:
    """Write a record that is to be changed, its copy first: the record itself vouches for what the arrays hold."""
    write_atomic(record_copy_file(root, record.shard), encode_record_copy(record))
    write_atomic(record_file(root, record.shard), encode_record(record))


def remove_record(root: Path, shard: int) -> None:
    """Take a record away, and then its copy."""
    record_file(root, shard).unlink(missing_ok=True)
    record_copy_file(root, shard).unlink(missing_ok=True)


def recorded_shards(root: Path) -> list[int]:
    """The shards that have a done-record, sorted."""
    try:
        with os.scandir(root / PRIVATE / "shards") as entries:
            return sorted(int(entry.name[:-5]) for entry in entries if RECORD.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def pending_file(root: Path) -> Path:
    """Return the file of the pending plan."""
    return root / PRIVATE / "pending.json"


def read_pending(root: Path) -> Pending | None:
    """The plan of rows that a build has not committed, None where there is none.

    Raises:
        CacheError: damaged.
    """
    file = pending_file(root)
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
        raise ValueError(f"no shard is {shard[:20]!r}")
    return int(shard), tuple(Unit(slot, *line) for slot, line in enumerate(lines))


def write_pending(root: Path, pending: Pending) -> None:
    """Write the pending plan, with its checksum."""
    shards = {
        str(shard): [[unit.path, unit.why, unit.first, unit.stop, unit.digest] for unit in units]
        for shard, units in pending.shards.items()
    }
    content = {"head": pending.head, "reading": pending.reading, "shards": shards}
    write_atomic(pending_file(root), with_checksum(canonical(content)))


def clear_pending(root: Path) -> None:
    """Remove the pending plan, if there is one."""
    pending_file(root).unlink(missing_ok=True)


def is_committed(pending: Pending, head: Commit | None) -> bool:
    """Whether a commit holds the work of this plan: its builder was killed before it could remove the plan."""
    return head is not None and head.id != pending.head and head.private.reading == pending.reading


def next_shard(root: Path, head: Commit | None, pending: Pending | None) -> int:
    """The first shard number that was never given out: not in a commit, a record or a pending plan."""
    committed = head.private.next_shard if head else 0
    return max([committed - 1, *recorded_shards(root)[-1:], *(pending.shards if pending else ())]) + 1


def partials(root: Path) -> Iterator[Path]:
    """The temporary files of writers that were killed, or are at work: where a cache has files, and no deeper."""
    beside = [root / name for name in os.listdir(root)] if root.is_dir() else []
    yield from (path for path in beside if is_partial(root, path) and path.is_file())
    for own in OWN_FOLDERS:
        for folder, folders, names in os.walk(root / own):
            if ASIDE in folders and Path(folder) == root / PRIVATE:
                folders.remove(ASIDE)
            yield from (path for name in names if is_partial(root, path := Path(folder) / name))


def is_own(root: Path, path: Path) -> bool:
    """Whether a file lies where this program writes and nobody else."""
    return path.relative_to(root).parts[0] in OWN_FOLDERS or is_partial(root, path)


def is_partial(root: Path, path: Path) -> bool:
    """Whether a file is a temporary one of this program: beside the root document, or in a folder of its own."""
    parts = path.relative_to(root).parts
    if len(parts) == 1:  # where others write too
        return is_partial_name(parts[0])
    return parts[0] in OWN_FOLDERS and parts[-1].startswith(".") and parts[-1].endswith(PARTIAL)


def is_chunk(root: Path, path: Path) -> bool:
    """Whether a file lies in the place of a shard: nothing that is recorded is lost with one that no record names."""
    folder, *inside = path.relative_to(root).parts
    return folder in ("images", "sums") and "c" in inside[:2]


def disk_need(sizes_px: Sequence[int], channels: int, slices: int) -> int:
    """Bytes that so many slices are likely to take, rounded up generously: 0.4 of the raw pixels.

    Source: 0.30 of the raw pixels for LZ4 on 52 real slices at 224, 0.26 at 380; records add about 1 KB a slice.
    """
    return sum(slices * int(0.4 * channels * side * side) for side in sizes_px) + 1024 * slices

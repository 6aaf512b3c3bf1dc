"""This file holds what a build keeps in the cache beside its commits: shards, done-records and the pending plan."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.commits import Commit
from pipeline.cache.files import PARTIAL, PRIVATE, canonical, read_sealed, seal, write_atomic
from pipeline.dicom.records import Unit
from pipeline.planning.stages import ArraySpec


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
    return root / spec.images_path / "c" / str(shard) / "0" / "0" / "0"


def sums_file(root: Path, spec: ArraySpec, shard: int) -> Path:
    return root / spec.sums_path / "c" / str(shard) / "0" / "0"


def record_file(root: Path, shard: int) -> Path:
    return root / PRIVATE / "shards" / f"{shard}.json"


def read_record(root: Path, shard: int) -> dict[str, Any] | None:
    """The done-record of a shard, None where it was never finished.

    Raises:
        CacheError: damaged.
    """
    try:
        return dict(json.loads(read_sealed(record_file(root, shard))))
    except FileNotFoundError:
        return None


def encode_record(record: Mapping[str, Any]) -> bytes:
    """The content of a shard's done-record: what was read for it and what every array holds of it."""
    return seal(canonical(record))


def units_of(record: Mapping[str, Any]) -> tuple[Unit, ...]:
    """The units that a shard was filled from."""
    files = record["files"]
    columns = zip(files["path"], files["why"], files["first"], files["stop"], files["digest"], strict=True)
    return tuple(
        Unit(slot, path, why, first, stop, (digest or "") if stop else "")
        for slot, (path, why, first, stop, digest) in enumerate(columns)
    )


def recorded_shards(root: Path) -> list[int]:
    """The shards that have a done-record, sorted."""
    try:
        with os.scandir(root / PRIVATE / "shards") as entries:
            return sorted(int(entry.name[:-5]) for entry in entries if entry.name[:-5].isdigit())
    except FileNotFoundError:
        return []


def pending_file(root: Path) -> Path:
    return root / PRIVATE / "pending.json"


def read_pending(root: Path) -> Pending | None:
    """The plan of rows that a build has not committed, None where there is none.

    Raises:
        CacheError: damaged.
    """
    try:
        content = json.loads(read_sealed(pending_file(root)))
    except FileNotFoundError:
        return None
    shards = {
        int(shard): tuple(Unit(slot, *unit) for slot, unit in enumerate(units))
        for shard, units in content["shards"].items()
    }
    return Pending(content["head"], content["reading"], shards)


def write_pending(root: Path, pending: Pending) -> None:
    shards = {
        str(shard): [[unit.path, unit.why, unit.first, unit.stop, unit.digest] for unit in units]
        for shard, units in pending.shards.items()
    }
    content = {"head": pending.head, "reading": pending.reading, "shards": shards}
    write_atomic(pending_file(root), seal(canonical(content)))


def clear_pending(root: Path) -> None:
    pending_file(root).unlink(missing_ok=True)


def is_committed(pending: Pending, head: Commit | None) -> bool:
    """Whether a commit holds the work of this plan: its builder was killed before it could remove the plan."""
    return head is not None and head.id != pending.head and head.private["reading"] == pending.reading


def next_shard(root: Path, head: Commit | None, pending: Pending | None) -> int:
    """The first shard number that was never given out: not in a commit, a record or a pending plan."""
    committed = head.private["next_shard"] if head else 0
    return max([committed - 1, *recorded_shards(root)[-1:], *(pending.shards if pending else ())]) + 1


def partials(root: Path) -> Iterator[Path]:
    """The temporary files of writers that were killed, or are at work."""
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(".") and name.endswith(PARTIAL):
                yield Path(folder) / name


def disk_need(sizes_px: Sequence[int], channels: int, slices: int) -> int:
    """Bytes that so many slices are likely to take, rounded up generously: 0.4 of the raw pixels.

    Source: 0.30 of the raw pixels for LZ4 on 52 real slices at 224, 0.26 at 380; records add about 1 KB a slice.
    """
    return sum(slices * int(0.4 * channels * side * side) for side in sizes_px) + 1024 * slices

"""Report what is in a cache: a summary, its logical digest, and how one file was processed."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import commits
from pipeline.cache.commits import Commit
from pipeline.cache.committing import require_record
from pipeline.cache.head import current_commit
from pipeline.cache.ledger import Ledger, digest_hex
from pipeline.cache.lock import builder_at_work
from pipeline.cache.paths import PRIVATE, Cache
from pipeline.cache.pending import is_committed, read_pending
from pipeline.cache.shard_record import ShardRecord
from pipeline.errors import CacheError
from pipeline.source.names import listed_name


def require_cache(cache: Cache) -> None:
    """Raise unless the path is a cache; one whose first build is unfinished is accepted.

    Raises:
        CacheError: it is not a cache.
    """
    if not cache.private.is_dir():
        if cache.root_document.is_file():
            current_commit(cache)  # its error says that the private folder was not copied, or this is another store
        raise CacheError(f"{cache}: no such cache; run: pipeline build --src DICOMS --out {cache}")


def require_head(cache: Cache) -> Commit:
    """Return the current commit of a cache that must have one.

    Raises:
        CacheError: there is no cache, it has no commit yet, or it is damaged.
    """
    require_cache(cache)
    head = current_commit(cache)
    if head is None:
        raise CacheError(f"{cache}: nothing has been committed yet; run the same `pipeline build` again to finish it")
    return head


# --- summary -------------------------------------------------------------------------------------------------------


def summary(cache: Cache) -> dict[str, Any]:
    """Return a summary of a cache as a JSON-serialisable mapping.

    Returns:
        the root attributes, and: `rows` (stored, live, dead_share), `bytes` by kind, `commits` (commit, created,
        slices; newest first), `source`, `reading`, `versions`, `unfinished` (shards planned and done by a build that
        was interrupted or is running, else None), and `running` (who is building the cache, "" if nobody).

    Raises:
        CacheError: there is no cache, it has no commit yet, or it is damaged.
    """
    head = require_head(cache)
    ledger = commits.read_ledger(cache, head.id)
    every = [
        {"commit": c.id, "created": c.attributes.created, "slices": c.attributes.num_slices}
        for c in commits.chain(cache, head)
    ]
    return {
        **head.attributes.as_json(),
        "rows": _rows(cache, head),
        "bytes": _bytes(cache, head, {str(shard) for shard in ledger.live_slots()}),
        "commits": every,
        "source": head.private.source,
        "reading": head.private.reading_settings,
        "versions": head.private.versions,
        "unfinished": _unfinished(cache, head),
        "running": builder_at_work(cache),
    }


def _rows(cache: Cache, head: Commit) -> dict[str, Any]:
    """Count the rows with a stored image in the arrays of the current commit, and those that its table refers to."""
    names = {spec.name for spec in head.terms.arrays}
    stored = 0
    for shard in cache.recorded_shards():
        arrays = require_record(cache, shard).arrays
        images = [arrays[name].digests for name in names & arrays.keys()]
        stored += sum(any(digests) for digests in zip(*images, strict=True))
    live = head.attributes.num_slices
    return {"stored": stored, "live": live, "dead_share": round(1 - live / stored, 4) if stored else 0.0}


def _bytes(cache: Cache, head: Commit, live: set[str]) -> dict[str, int]:
    """Return the bytes on disk: of each size of the current commit, of unused shards and arrays, and of the rest."""
    sides = [(str(spec.size_px), spec) for spec in head.terms.arrays]
    sizes: dict[str, str] = {path: side for side, spec in sides for path in (spec.images_path, spec.sums_path)}
    found = dict.fromkeys([*sizes.values(), "unused", "private", "tables_and_metadata"], 0)
    for folder, _, names in os.walk(cache.root):
        parts = Path(folder).relative_to(cache.root).parts
        for name in names:
            kind = "tables_and_metadata"
            if parts[:1] == (PRIVATE,):
                kind = "private"
            elif parts[:1] in (("images",), ("sums",)) and len(parts) > 1:
                used = "/".join(parts[:2]) in sizes and (len(parts) < 4 or parts[3] in live)
                kind = sizes["/".join(parts[:2])] if used else "unused"
            found[kind] += (Path(folder) / name).lstat().st_size
    return found


def _unfinished(cache: Cache, head: Commit) -> dict[str, int] | None:
    pending = read_pending(cache)
    if pending is None or not pending.shards or is_committed(pending, head):
        return None
    done = sum(cache.record_file(shard).exists() for shard in pending.shards)
    return {"shards": len(pending.shards), "done": done}


def digest(cache: Cache) -> str:
    """Return the logical digest of the current commit, which depends on its content but not on its history.

    Raises:
        CacheError: there is no cache, it has no commit yet, or it is damaged.
    """
    import pandas as pd

    from pipeline.tables.tables import logical_digest

    head = require_head(cache)
    rows_per_shard = head.terms.rows_per_shard
    table = pd.read_csv(io.BytesIO(commits.read_table(cache, head)), dtype=str, keep_default_na=False)
    table = table.astype({"row": int, "frame": int})
    digests: dict[str, dict[int, str]] = {str(spec.size_px): {} for spec in head.terms.arrays}
    for shard in sorted(set((table["row"] // rows_per_shard).tolist())):
        arrays = require_record(cache, shard).arrays
        for spec in head.terms.arrays:
            images = arrays[spec.name].digests
            digests[str(spec.size_px)] |= {
                shard * rows_per_shard + row: image for row, image in enumerate(images) if image
            }
    return logical_digest(table, digests, [dataclasses.asdict(window) for window in head.terms.windows])


# --- one file ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileHistory:
    """How one source file was processed.

    Attributes:
        path: relative to the source.
        facts: (name, value), in the order to print them.
    """

    path: str
    facts: tuple[tuple[str, str], ...]


def why(cache: Cache, file: str) -> FileHistory:
    """Return when a file was read, its content, the settings used, and its rows or the reason for its rejection.

    Args:
        file: its path, relative to the source or to the working directory, or absolute; or the last parts of its
            path, if no other file ends in them.

    Raises:
        CacheError: the cache was not built from such a file, several files match, or the cache is damaged.
    """
    head = require_head(cache)
    ledger = commits.read_ledger(cache, head.id)
    line = _find(cache, head, ledger, file)
    path, shard, slot = ledger.paths[line], int(ledger.shards[line]), int(ledger.slots[line])
    parts = range(shard, shard + int(ledger.parts[line]))
    records = {part: require_record(cache, part) for part in parts}
    facts = [*_reading_facts(records[shard], slot, path, head), ("content", _content(ledger, line))]
    lines = _table_lines(cache, head)
    slices = {part: list(_slice_facts(head, part, record, slot, lines)) for part, record in records.items()}
    first = next((part for part, found in slices.items() if found), None)
    if first is not None:
        facts += _array_facts(head, records[first])
    facts += [fact for found in slices.values() for fact in found]
    facts += _reject_facts(cache, head, path)
    return FileHistory(path, tuple(facts))


def _find(cache: Cache, head: Commit, ledger: Ledger, file: str) -> int:
    index = ledger.index()
    source = head.private.source
    name = os.path.normpath(listed_name(file))
    for candidate in (file, name, os.path.relpath(name, source)):
        if candidate in index:
            return index[candidate]
    ends = [path for path in ledger.paths if path.endswith("/" + name)]
    if len(ends) == 1:
        return index[ends[0]]
    if ends:
        raise CacheError(f"{file}: {len(ends):,} files match, such as {ends[0]} and {ends[1]}; give more of the path")
    raise CacheError(f"{file}: {cache} was not built from this file; it was built from {source}; run: pipeline plan")


def _reading_facts(record: ShardRecord, slot: int, path: str, head: Commit) -> Iterator[tuple[str, str]]:
    file = record.files[slot]
    yield "read", f"{record.built}: {file.why}" if file.why else record.built
    if file.path != path:
        yield "name", f"it was {file.path} then, and has the same content"
    yield "with", ", ".join(f"{name} {version}" for name, version in record.versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in head.private.reading_settings.items())
    yield "settings", f"{settings} (fingerprint {record.reading[:8]})"


def _content(ledger: Ledger, line: int) -> str:
    if ledger.unread()[line]:
        return "it could not be read"
    return f"{int(ledger.sizes[line]):,} bytes, xxh3-128 {digest_hex(ledger.digests[line])}"


def _array_facts(head: Commit, record: ShardRecord) -> Iterator[tuple[str, str]]:
    """Yield how the slices of a shard were converted."""
    for spec in head.terms.arrays:
        yield f"size {spec.size_px}", f"converted {record.arrays[spec.name].built} into {spec.images_path}"
    windows = ", ".join(f"{w.name} {w.level_hu:g}/{w.width_hu:g} HU" for w in head.terms.windows)
    yield "windows", windows


def _slice_facts(
    head: Commit, shard: int, record: ShardRecord, slot: int, lines: Mapping[tuple[str, str], dict[str, str]]
) -> Iterator[tuple[str, str]]:
    for row in record.rows_of([slot]):
        placed = record.slices[row]
        assert placed
        key = placed.record.sop_instance_uid, str(placed.record.frame)
        line = lines.get(key)
        if line and int(line["row"]) == shard * head.terms.rows_per_shard + row:
            frame = f", frame {key[1]}" if key[1] != "0" else ""
            yield "slice", f"{key[0]}{frame}: row {line['row']}, z_norm {line['z_norm']} from {_z_from(head, line)}"


def _z_from(head: Commit, line: Mapping[str, str]) -> str:
    """Return what determined a slice's position in its series, in the terms of docs/accepted_files.md."""
    row = int(line["row"])
    for name, ranges in head.private.z_from.items():
        if any(first <= row < stop for first, stop in ranges):
            return str(name)
    return "position"


def _table_lines(cache: Cache, head: Commit) -> dict[tuple[str, str], dict[str, str]]:
    """Return the lines of the current commit's table by (SOP Instance UID, frame)."""
    text = commits.read_table(cache, head).decode()
    return {(line["sop_instance_uid"], line["frame"]): line for line in csv.DictReader(io.StringIO(text, newline=""))}


def _reject_facts(cache: Cache, head: Commit, path: str) -> Iterator[tuple[str, str]]:
    text = commits.read_rejects(cache, head).decode("utf-8", "surrogateescape")
    for line in csv.DictReader(io.StringIO(text, newline="")):
        if line["path"] == path:
            yield "rejected", f"{line['code']}: {line['message']}"

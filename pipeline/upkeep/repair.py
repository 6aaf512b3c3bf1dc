"""Repair what `verify` found: from backups and copies, from the source, or by letting lost slices leave."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.cache.backups import Backup, read_backup
from pipeline.cache.commits import Commit
from pipeline.cache.committing import write_parts
from pipeline.cache.copies import update_copies
from pipeline.cache.done_records import remove_record, write_record
from pipeline.cache.files import make_folder, sha256, write_atomic
from pipeline.cache.head import current_commit
from pipeline.cache.paths import ROOT_DOCUMENT, Cache
from pipeline.cache.pending import Pending, clear_pending, write_pending
from pipeline.errors import CacheError
from pipeline.system import sync_folder
from pipeline.upkeep.examination import Damage, Examination
from pipeline.upkeep.repair_shards import Lost, NeedsSource, Originals, rebuild_array, rebuild_record
from pipeline.upkeep.verify import examine_records, examine_rest
from pipeline.upkeep.verify_commits import examine_commits
from pipeline.upkeep.verify_shards import examine_shards

COMMIT_PARTS = ("root", "document", "commit", "table", "rejects", "ledger", "backup")


@dataclass(slots=True)
class Repairs:
    """What a repair came to.

    Attributes:
        repaired: the damages that are gone.
        left: the damages that are still there.
        lost: path, SOP Instance UID and frame of every slice that left the current commit.
        dropped: older commits that named a lost slice and were moved aside.
        collected: leftovers without content of their own that were removed.
        aside: what could not be placed -> where it lies now.
        why_left: what is needed to repair the rest, "" where nothing is left.
    """

    repaired: list[Damage] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)
    lost: list[tuple[str, str, int]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    collected: list[Path] = field(default_factory=list)
    aside: list[tuple[Path, Path]] = field(default_factory=list)
    why_left: str = ""


def repair(found: Examination, originals: Originals) -> Repairs:
    """Repair everything that can be repaired. Only the holder of the lock may call it.

    Nothing that is whole is removed: a commit, table or ledger that cannot be placed is moved aside.

    Args:
        found: all that `examine` found; its records are brought up to date.

    Raises:
        CacheError: a commit, or the patient key, cannot be recovered from anywhere.
    """
    cache, done = found.cache, Repairs()
    _clear_folders(found, done)
    _restore_commits(found)
    lost = Lost()
    touched = {damage.shard for damage in found.damages if damage.shard >= 0}
    for shard in sorted(touched):
        try:
            _rebuild_shard(found, shard, originals, lost)
        except NeedsSource as needed:
            done.why_left = str(needed)
    _restore_pending(found)
    if lost.slots and found.head:
        done.lost = _commit_without(found, lost)
        _drop_commits(found, lost, done)
    _clear_unknown(found, done)
    head = current_commit(cache)
    if head:
        cache.copied_file.unlink(missing_ok=True)
        update_copies(cache, head)
    _examine_again(cache, touched, found, done)
    return done


def _examine_again(cache: Cache, touched: Iterable[int], found: Examination, done: Repairs) -> None:
    after = Examination(cache)
    examine_commits(after)
    examine_records(after)
    examine_shards(after, sorted(set(touched) & after.records.keys()), lambda shards: None)
    examine_rest(after)
    done.left = after.damages
    left = {damage.path for damage in after.damages}
    done.repaired = [damage for damage in found.damages if damage.path not in left]


# --- what lies in the way ------------------------------------------------------------------------------------------


def _clear_folders(found: Examination, done: Repairs) -> None:
    """Move folders that lie in the places of files aside, and files in the places of folders."""
    cache = found.cache
    for damage in found.damages:
        path = cache.root / damage.path
        if path.is_dir():
            _put_aside(cache, path, done)
        for above in path.relative_to(cache.root).parents:
            if (cache.root / above).exists() and not (cache.root / above).is_dir():
                _put_aside(cache, cache.root / above, done)


def _clear_unknown(found: Examination, done: Repairs) -> None:
    """Remove temporary files and shards that no record vouches for; move everything else of ours aside."""
    cache = found.cache
    for path in found.unknown:
        if not cache.is_own(path) or not os.path.lexists(path):
            continue
        if cache.is_partial(path) or cache.is_chunk(path):
            path.unlink()
            done.collected.append(path)
        else:
            _put_aside(cache, path, done)


def _put_aside(cache: Cache, path: Path, done: Repairs) -> None:
    """Rename a file or folder into the private folder `aside`, under the path that it had."""
    folder = cache.aside
    numbers = (f".{number}" if number else "" for number in range(1_000_000))
    place = next(to for number in numbers if not (to := folder / f"{path.relative_to(cache.root)}{number}").exists())
    make_folder(place.parent)
    os.replace(path, place)
    sync_folder(place.parent)
    sync_folder(path.parent)
    done.aside.append((path, place))


# --- commits -------------------------------------------------------------------------------------------------------


def _restore_commits(found: Examination) -> None:
    """Write again what commits, backups and zarr.json should say; the root last."""
    cache, head = found.cache, found.head
    broken = {damage.commit for damage in found.damages if damage.part in COMMIT_PARTS and damage.commit}
    for commit_id in sorted(broken):
        write_parts(cache, _whole_parts(found, found.commits[commit_id]))
    documents: dict[str, bytes] = {}
    for commit in found.commits.values():
        for path, content in commit.documents().items():
            documents.setdefault(path, content)
    damaged = {damage.path for damage in found.damages}
    if head:
        for path in sorted(damaged & documents.keys(), key=lambda path: path == ROOT_DOCUMENT):
            write_atomic(cache.root / path, documents[path])


def _whole_parts(found: Examination, commit: Commit) -> Backup:
    """Each part of a commit, from its file, from its backup, or from the copy beside the root.

    Raises:
        CacheError: a part is damaged everywhere.
    """
    cache, backup = found.cache, read_backup(found.cache, commit.id)
    tables = [cache.table_file(commit.attributes.table_digest), cache.metadata_copy]
    rejects = [cache.rejects_file(commit.private.rejects_digest), cache.rejects_copy]
    table = _with_digest(tables, commit.attributes.table_digest) or (backup.table if backup else None)
    reject = _with_digest(rejects, commit.private.rejects_digest) or (backup.rejects if backup else None)
    ledger = found.ledgers.get(commit.id)
    if table is None or reject is None or ledger is None:
        part = "table" if table is None else "list of rejects" if reject is None else "ledger"
        raise CacheError(
            f"{cache}: the {part} of commit {commit.id} and its backup are lost; build it again with a new --out"
        )
    return Backup(commit, table, reject, ledger)


def _with_digest(paths: Iterable[Path], digest: str) -> bytes | None:
    for path in paths:
        if path.is_file() and sha256(content := path.read_bytes()) == digest:
            return content
    return None


# --- shards --------------------------------------------------------------------------------------------------------


def _rebuild_shard(found: Examination, shard: int, originals: Originals, lost: Lost) -> None:
    """Repair a shard's record and arrays."""
    damages = [damage for damage in found.damages if damage.shard == shard]
    if not any(shard in ledger.live_slots() for ledger in found.ledgers.values()):
        found.records.pop(shard, None)  # the next build converts what it may have been for
        remove_record(found.cache, shard)
        return
    names = {damage.array for damage in damages if damage.part in ("images", "sums")}
    disagrees = any(damage.part == "record" and damage.commit for damage in damages)
    if shard not in found.records or disagrees:
        names = set(rebuild_record(found, shard, originals, _rows_of_slices(found, shard), lost))
    elif any(damage.part in ("record", "record copy") for damage in damages):
        write_record(found.cache, found.records[shard])
    for name in sorted(names):
        rebuild_array(found, shard, name, originals, lost)


def _rows_of_slices(found: Examination, shard: int) -> dict[tuple[str, int], int]:
    """(SOP Instance UID, frame) -> row within the shard, of the slices that any commit's table places there."""
    rows = {}
    for commit in found.commits.values():
        rows_per_shard = commit.terms.rows_per_shard
        for line in _table(found.cache, commit):
            if int(line["row"]) // rows_per_shard == shard:
                rows[line["sop_instance_uid"], int(line["frame"])] = int(line["row"]) % rows_per_shard
    return rows


def _table(cache: Cache, commit: Commit) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(cache.table_file(commit.attributes.table_digest).read_text("utf-8")))


def _restore_pending(found: Examination) -> None:
    """Put a damaged plan together again from the records of the shards that it has finished."""
    if not any(damage.part == "pending" for damage in found.damages):
        return
    first = found.head.private.next_shard if found.head else 0
    left = {shard: record for shard, record in found.records.items() if shard >= first}
    clear_pending(found.cache)
    for reading in {record.reading for record in list(left.values())[-1:]}:
        shards = {shard: record.units() for shard, record in left.items() if record.reading == reading}
        write_pending(found.cache, Pending(found.head.id if found.head else "", reading, shards))


# --- what is lost --------------------------------------------------------------------------------------------------


def _commit_without(found: Examination, lost: Lost) -> list[tuple[str, str, int]]:
    """Write a commit without the files of which a slice is lost. Returns the slices that left."""
    from pipeline.cache.committing import tables_of, write_commit
    from pipeline.planning.catalog import LabelFile
    from pipeline.tables.labels import labels_of_table

    cache, head = found.cache, found.head
    assert head
    ledger = found.ledgers[head.id]
    live = ledger.live_slots()
    gone = {live[shard][slot] for shard, slot in lost.slots if slot in live.get(shard, {})}
    if not gone:
        return []
    kept = ledger.take(np.array([line for line, path in enumerate(ledger.paths) if path not in gone], np.int64))
    table = cache.table_file(head.attributes.table_digest).read_bytes()
    labels = labels_of_table(LabelFile(), table, head.terms.class_names)
    tables = tables_of(cache, kept, head.terms, head.private.image_id, labels)
    tables.label_counts["labels_without_slice"] += head.attributes.label_counts["labels_without_slice"]
    write_commit(cache, head, kept, tables, head.terms, arrays=head.arrays, private=head.private)
    stayed = set(zip(tables.metadata["sop_instance_uid"], tables.metadata["frame"], strict=True))
    before = [(line["sop_instance_uid"], int(line["frame"]), int(line["row"])) for line in _table(cache, head)]
    path_of = _path_of_row(found, head, live)
    return [(path_of.get(row, ""), uid, frame) for uid, frame, row in before if (uid, frame) not in stayed]


def _path_of_row(found: Examination, head: Commit, live: dict[int, dict[int, str]]) -> dict[int, str]:
    return {
        shard * head.terms.rows_per_shard + row: slots[placed.slot]
        for shard, slots in live.items()
        if shard in found.records
        for row, placed in enumerate(found.records[shard].slices)
        if placed and placed.slot in slots
    }


def _drop_commits(found: Examination, lost: Lost, done: Repairs) -> None:
    """Move the commits that name a lost row aside: a run that reopens one is told so, and reads no damage."""
    for commit in found.commits.values():
        if any(int(line["row"]) in lost.rows for line in _table(found.cache, commit)):
            for path in found.cache.own_files(commit.id):
                if path.exists():
                    _put_aside(found.cache, path, done)
            done.dropped.append(commit.id)

"""Repair what `verify` found, from backups, copies and the source; a new commit leaves out the slices that are lost."""

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
    """The result of a repair.

    Attributes:
        repaired: the damage that was repaired.
        left: the damage that remains.
        lost: path, SOP Instance UID and frame of every slice that the new commit leaves out.
        dropped: ids of older commits that referred to a lost slice and were moved aside.
        collected: temporary files and unrecorded shard files that were removed.
        aside: files and folders that could not be placed: (old path, new path).
        why_left: what is needed to repair the rest, "" if that is not known or nothing is left.
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

    Nothing intact is removed: a commit, table or ledger that cannot be placed is moved aside.

    Args:
        found: the result of `examine`; its records are updated.

    Raises:
        CacheError: a part of a commit is lost together with its backup, or a done-record must be rebuilt and the
            cache's patient key was not given.
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


# --- misplaced and unknown files -----------------------------------------------------------------------------------


def _clear_folders(found: Examination, done: Repairs) -> None:
    """Move aside folders where files belong, and files where folders belong."""
    cache = found.cache
    for damage in found.damages:
        path = cache.root / damage.path
        if path.is_dir():
            _put_aside(cache, path, done)
        for parent in path.relative_to(cache.root).parents:
            if (cache.root / parent).exists() and not (cache.root / parent).is_dir():
                _put_aside(cache, cache.root / parent, done)


def _clear_unknown(found: Examination, done: Repairs) -> None:
    """Remove temporary files and unrecorded shard files; move every other unknown file in our folders aside."""
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
    """Move a file or folder into the private folder `aside`, keeping its relative path; a number avoids a clash."""
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
    """Rewrite the damaged files of commits and every damaged zarr.json, that of the root last."""
    cache, head = found.cache, found.head
    broken = {damage.commit for damage in found.damages if damage.part in COMMIT_PARTS and damage.commit}
    for commit_id in sorted(broken):
        write_parts(cache, _intact_parts(found, found.commits[commit_id]))
    documents: dict[str, bytes] = {}
    for commit in found.commits.values():
        for path, content in commit.documents().items():
            documents.setdefault(path, content)
    damaged = {damage.path for damage in found.damages}
    if head:
        for path in sorted(damaged & documents.keys(), key=lambda path: path == ROOT_DOCUMENT):
            write_atomic(cache.root / path, documents[path])


def _intact_parts(found: Examination, commit: Commit) -> Backup:
    """Return each part of a commit, from its own file, the plain copy, or the backup.

    Raises:
        CacheError: a part is damaged in all of them.
    """
    cache, backup = found.cache, read_backup(found.cache, commit.id)
    tables = [cache.table_file(commit.attributes.table_digest), cache.metadata_copy]
    rejects = [cache.rejects_file(commit.private.rejects_digest), cache.rejects_copy]
    table = _with_digest(tables, commit.attributes.table_digest) or (backup.table if backup else None)
    reject_list = _with_digest(rejects, commit.private.rejects_digest) or (backup.rejects if backup else None)
    ledger = found.ledgers.get(commit.id)
    if table is None or reject_list is None or ledger is None:
        part = "table" if table is None else "list of rejects" if reject_list is None else "ledger"
        raise CacheError(
            f"{cache}: the {part} of commit {commit.id} and its backup are lost; build it again with a new --out"
        )
    return Backup(commit, table, reject_list, ledger)


def _with_digest(paths: Iterable[Path], digest: str) -> bytes | None:
    """Return the content of the first of these files that has this SHA-256, None if none has."""
    for path in paths:
        if path.is_file() and sha256(content := path.read_bytes()) == digest:
            return content
    return None


# --- shards --------------------------------------------------------------------------------------------------------


def _rebuild_shard(found: Examination, shard: int, originals: Originals, lost: Lost) -> None:
    """Repair a shard's record and arrays; remove the record of a damaged shard that no commit uses."""
    damages = [damage for damage in found.damages if damage.shard == shard]
    if not any(shard in ledger.live_slots() for ledger in found.ledgers.values()):
        found.records.pop(shard, None)  # if an unfinished build planned it, the next build fills it again
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
    """Return (SOP Instance UID, frame) -> row within the shard for the slices that any commit's table places there."""
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
    """Replace a damaged pending plan by one of the shards that were finished, from their records."""
    if not any(damage.part == "pending" for damage in found.damages):
        return
    first = found.head.private.next_shard if found.head else 0
    left = {shard: record for shard, record in found.records.items() if shard >= first}
    clear_pending(found.cache)
    for reading in {record.reading for record in list(left.values())[-1:]}:
        shards = {shard: record.units() for shard, record in left.items() if record.reading == reading}
        write_pending(found.cache, Pending(found.head.id if found.head else "", reading, shards))


# --- lost slices ---------------------------------------------------------------------------------------------------


def _commit_without(found: Examination, lost: Lost) -> list[tuple[str, str, int]]:
    """Write a commit that leaves out every file with a lost slice.

    Returns:
        path, SOP Instance UID and frame of every slice left out.
    """
    from pipeline.cache.committing import NewCommit, tables_of, write_commit
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
    write_commit(cache, head, NewCommit(kept, tables, head.terms, head.arrays, head.private))
    stayed = set(zip(tables.metadata["sop_instance_uid"], tables.metadata["frame"], strict=True))
    before = [(line["sop_instance_uid"], int(line["frame"]), int(line["row"])) for line in _table(cache, head)]
    paths = _paths_of_rows(found, head, live)
    return [(paths.get(row, ""), uid, frame) for uid, frame, row in before if (uid, frame) not in stayed]


def _paths_of_rows(found: Examination, head: Commit, live: dict[int, dict[int, str]]) -> dict[int, str]:
    """Return the path of the file that each row of the arrays came from; `live` is as from `Ledger.live_slots`."""
    return {
        shard * head.terms.rows_per_shard + row: slots[placed.slot]
        for shard, slots in live.items()
        if shard in found.records
        for row, placed in enumerate(found.records[shard].slices)
        if placed and placed.slot in slots
    }


def _drop_commits(found: Examination, lost: Lost, done: Repairs) -> None:
    """Move aside the commits that refer to a lost row: a run that opens one then gets an error, not damaged images."""
    for commit in found.commits.values():
        if any(int(line["row"]) in lost.rows for line in _table(found.cache, commit)):
            for path in found.cache.own_files(commit.id):
                if path.exists():
                    _put_aside(found.cache, path, done)
            done.dropped.append(commit.id)

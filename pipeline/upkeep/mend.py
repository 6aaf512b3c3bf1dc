"""This file mends what `verify` found: from spares and copies, from the source, or by letting lost slices leave."""

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import commits, layout
from pipeline.cache.commits import Commit, Spare
from pipeline.cache.documents import ROOT_DOCUMENT, zarr_documents
from pipeline.cache.files import correct_one_bit, seal, sha256, write_atomic
from pipeline.cache.ledger import Ledger
from pipeline.errors import CacheError
from pipeline.upkeep.examination import Damage, Examination
from pipeline.upkeep.mend_shards import Lost, NeedsSource, Originals, drop_shard, mend_images, mend_sums, rebuild_record
from pipeline.upkeep.verify import (
    examine_commits,
    examine_records,
    examine_rest,
    is_leftover,
)
from pipeline.upkeep.verify_shards import examine_shards

COMMIT_PARTS = ("root", "document", "commit", "table", "rejects", "ledger", "spare")


@dataclass(slots=True)
class Mended:
    """What a repair came to.

    Attributes:
        mended: the damages that are gone.
        left: the damages that are still there.
        lost: path, SOP Instance UID and frame of every slice that left the current commit.
        dropped: older commits that named a lost slice and are gone.
        collected: leftovers that were removed.
        why_left: what is needed to mend the rest, "" where nothing is left.
    """

    mended: list[Damage] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)
    lost: list[tuple[str, str, int]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    collected: list[Path] = field(default_factory=list)
    why_left: str = ""


def mend(found: Examination, originals: Originals) -> Mended:
    """Mend everything that can be mended. Only the holder of the lock may call it.

    Args:
        found: all that `examine` found; its records are brought up to date.

    Raises:
        CacheError: a commit, or the patient key, cannot be had from anywhere.
    """
    root, done = found.root, Mended()
    _mend_commits(found)
    lost = Lost()
    touched = {damage.shard for damage in found.damages if damage.shard >= 0}
    for shard in sorted(touched):
        try:
            _mend_shard(found, shard, originals, lost)
        except NeedsSource as needed:
            done.why_left = str(needed)
    _mend_pending(found)
    if lost.slots and found.head:
        done.lost = _let_leave(found, lost)
        done.dropped = _drop_commits(found, lost)
    for path in found.unknown:
        if is_leftover(root, path):
            path.unlink(missing_ok=True)
            done.collected.append(path)
    head = commits.head(root)
    if head:
        commits.copied_file(root).unlink(missing_ok=True)
        commits.mend_copies(root, head)
    after = Examination(root)
    examine_commits(after)
    examine_records(after)
    examine_shards(after, sorted(touched & after.records.keys()), lambda shards: None)
    examine_rest(after)
    done.left = after.damages
    left = {damage.path for damage in after.damages}
    done.mended = [damage for damage in found.damages if damage.path not in left]
    return done


# --- commits -------------------------------------------------------------------------------------------------------


def _mend_commits(found: Examination) -> None:
    """Write again what commits, spares and zarr.json should say; the root last."""
    root, head = found.root, found.head
    broken = {damage.commit for damage in found.damages if damage.part in COMMIT_PARTS and damage.commit}
    for commit_id in broken:
        _mend_commit(found, found.commits[commit_id])
    documents: dict[str, bytes] = {}
    for commit in found.commits.values():
        for path, content in zarr_documents(commit.attributes, commit.arrays).items():
            documents.setdefault(path, content)
    damaged = {damage.path for damage in found.damages}
    if head:
        for path in sorted(damaged & documents.keys(), key=lambda path: path == ROOT_DOCUMENT):
            write_atomic(root / path, documents[path])


def _mend_commit(found: Examination, commit: Commit) -> None:
    root = found.root
    whole = _whole_parts(found, commit)
    write_atomic(commits.commit_file(root, commit.id), whole.commit)
    write_atomic(commits.table_file(root, commit), whole.table)
    write_atomic(commits.rejects_file(root, commit), whole.rejects)
    ledger = Ledger.decode(whole.ledger)
    commits.write_ledger(root, commit.id, ledger)
    spare = commits.encode_spare(commit, whole.table, whole.rejects, ledger)
    write_atomic(commits.spare_file(root, commit.id), spare)


def _whole_parts(found: Examination, commit: Commit) -> Spare:
    """Each part of a commit, from its file, from its spare, or from the copy beside the root.

    Raises:
        CacheError: a part is damaged everywhere.
    """
    root, spare = found.root, commits.read_spare(found.root, commit.id)
    tables = [commits.table_file(root, commit), root / "metadata.csv"]
    rejects = [commits.rejects_file(root, commit), root / "rejects.csv"]
    table = _with_digest(tables, commit.attributes["metadata"]["digest"]) or (spare.table if spare else None)
    reject = _with_digest(rejects, commit.private["rejects_digest"]) or (spare.rejects if spare else None)
    ledger = found.ledgers.get(commit.id)
    if table is None or reject is None or ledger is None:
        part = "table" if table is None else "list of rejects" if reject is None else "ledger"
        raise CacheError(f"{root}: the {part} of commit {commit.id} and its spare are damaged; build a new --out")
    return Spare(commit.content(), table, reject, ledger.encode())


def _with_digest(paths: Collection[Path], digest: str) -> bytes | None:
    for path in paths:
        if path.exists() and sha256(content := path.read_bytes()) == digest:
            return content
    return None


# --- shards --------------------------------------------------------------------------------------------------------


def _mend_shard(found: Examination, shard: int, originals: Originals, lost: Lost) -> None:
    """Mend a shard's record and arrays."""
    damages = [damage for damage in found.damages if damage.shard == shard]
    if not any(shard in ledger.live_slots() for ledger in found.ledgers.values()):
        drop_shard(found, shard)
        return
    names = {damage.array for damage in damages if damage.part == "images"}
    if shard not in found.records and _correct_record(found, shard):
        again = replace(found, damages=[], files=set())
        examine_shards(again, [shard], lambda shards: None)
        damages = again.damages
        names = {damage.array for damage in damages if damage.part == "images"}
    elif any(damage.part == "record" for damage in damages):
        rebuild_record(found, shard, originals, _rows_of_slices(found, shard), lost)
        names = set(found.records[shard]["arrays"])
    for name in sorted(names):
        mend_images(found, shard, name, originals, lost)
    for damage in damages:
        if damage.part == "sums" and damage.array not in names:
            mend_sums(found, shard, damage.array)


def _correct_record(found: Examination, shard: int) -> bool:
    """Mend a record in which one bit has flipped: it may know of slices whose files are long gone."""
    path = layout.record_file(found.root, shard)
    content = correct_one_bit(path.read_bytes()) if path.exists() else None
    if content is None:
        return False
    write_atomic(path, seal(content))
    record = layout.read_record(found.root, shard)
    assert record
    found.records[shard] = record
    return True


def _rows_of_slices(found: Examination, shard: int) -> dict[tuple[str, int], int]:
    """(SOP Instance UID, frame) -> row within the shard, of the slices that any commit's table places there."""
    rows = {}
    for commit in found.commits.values():
        rows_per_shard = commit.attributes["rows_per_shard"]
        for line in _table(found.root, commit):
            if int(line["row"]) // rows_per_shard == shard:
                rows[line["sop_instance_uid"], int(line["frame"])] = int(line["row"]) % rows_per_shard
    return rows


def _table(root: Path, commit: Commit) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(commits.table_file(root, commit).read_text("utf-8")))


def _mend_pending(found: Examination) -> None:
    """Put a damaged plan together again from the records of the shards that it has finished."""
    if not any(damage.part == "pending" for damage in found.damages):
        return
    first = found.head.private["next_shard"] if found.head else 0
    left = {shard: record for shard, record in found.records.items() if shard >= first}
    layout.clear_pending(found.root)
    for reading in {record["reading"] for record in list(left.values())[-1:]}:
        shards = {shard: layout.units_of(record) for shard, record in left.items() if record["reading"] == reading}
        layout.write_pending(found.root, layout.Pending(found.head.id if found.head else "", reading, shards))


# --- what is lost --------------------------------------------------------------------------------------------------


def _let_leave(found: Examination, lost: Lost) -> list[tuple[str, str, int]]:
    """Land a commit without the files of which a slice is lost. Returns the slices that left."""
    from pipeline.cache.landing import land, tables_of

    root, head = found.root, found.head
    assert head
    ledger = found.ledgers[head.id]
    live = ledger.live_slots()
    gone = {live[shard][slot] for shard, slot in lost.slots if slot in live.get(shard, {})}
    if not gone:
        return []
    kept = ledger.take(np.array([line for line, path in enumerate(ledger.paths) if path not in gone], np.int64))
    terms = {key: value for key, value in head.attributes.items() if key not in ("commit", "num_slices", "metadata")}
    tables = tables_of(root, kept, terms, head.private["image_id"], _labels(root, head))
    tables.label_counts["labels_without_slice"] += head.attributes["label_counts"]["labels_without_slice"]
    land(root, head, kept, tables, terms, head.arrays, head.private)
    stayed = set(zip(tables.metadata["sop_instance_uid"], tables.metadata["frame"], strict=True))
    before = [(line["sop_instance_uid"], int(line["frame"]), int(line["row"])) for line in _table(root, head)]
    path_of = _path_of_row(found, head, live)
    return [(path_of.get(row, ""), uid, frame) for uid, frame, row in before if (uid, frame) not in stayed]


def _path_of_row(found: Examination, head: Commit, live: dict[int, dict[int, str]]) -> dict[int, str]:
    rows_per_shard = head.attributes["rows_per_shard"]
    return {
        shard * rows_per_shard + row: slots[slot]
        for shard, slots in live.items()
        if shard in found.records
        for row, slot in enumerate(found.records[shard]["slices"]["slot"])
        if slot in slots
    }


def _labels(root: Path, head: Commit) -> Any:
    """The labels that the commit's table holds, as `labels.read_labels` would give them."""
    import pandas as pd

    classes = [klass["name"] for klass in head.attributes["classes"]]
    table = pd.read_csv(commits.table_file(root, head), dtype={"image_id": str}, keep_default_na=False, na_values=[""])
    labels = table.drop_duplicates("image_id").set_index("image_id")[classes].astype(np.float32)
    return labels.dropna(how="all")


def _drop_commits(found: Examination, lost: Lost) -> list[str]:
    """Remove the commits that name a lost row: a run that reopens one is told so, and reads no damage."""
    dropped = []
    for commit in found.commits.values():
        if any(int(line["row"]) in lost.rows for line in _table(found.root, commit)):
            commits.remove_commit(found.root, commit.id)
            dropped.append(commit.id)
    return dropped

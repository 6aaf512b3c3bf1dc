"""Find damage: read every file of a cache and compare it with its record."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.cache.commits import Commit
from pipeline.cache.done_records import read_record, read_record_copy
from pipeline.cache.files import checksum_matches, sha256
from pipeline.cache.ledger import Ledger, digest_hex
from pipeline.cache.paths import ARRAYS, ASIDE, Cache
from pipeline.cache.pending import read_pending
from pipeline.cache.shard_record import ShardRecord
from pipeline.errors import CacheError
from pipeline.upkeep.examination import Examination
from pipeline.upkeep.verify_commits import examine_commits, same_as
from pipeline.upkeep.verify_shards import examine_shards


def examine(cache: Cache, shard_done: Callable[[int], None] = lambda shards: None, chosen: str = "") -> Examination:
    """Read every file of a cache and return what is intact, damaged and unknown.

    Args:
        shard_done: called after each shard with the total number of shards.
        chosen: id of the commit to treat as the current one if both records of which one is current are lost.

    Raises:
        CacheError: the folder is not a cache, or its current commit cannot be determined or read.
    """
    found = Examination(cache)
    examine_commits(found, chosen)
    examine_records(found)
    examine_shards(found, list(found.records), shard_done)
    examine_rest(found)
    return found


# --- records -------------------------------------------------------------------------------------------------------


def examine_records(found: Examination) -> None:
    """Check every done-record and its copy, and that the records agree with the ledgers."""
    cache = found.cache
    named = {shard for ledger in found.ledgers.values() for shard in ledger.live_slots()}
    for shard in sorted(named | set(cache.recorded_shards())):
        record = _examine_record(found, shard)
        if record:
            found.records[shard] = record
        else:  # its shards belong to the cache: a repair can rebuild the record
            found.files |= {path for folder in ARRAYS for path in cache.root.glob(f"{folder}/*/c/{shard}/**/*")}
    for commit_id, ledger in found.ledgers.items():
        for shard, problem in _disagreements(found, found.commits[commit_id], ledger):
            found.damaged("record", cache.record_file(shard), problem, shard=shard, commit=commit_id)


def _examine_record(found: Examination, shard: int) -> ShardRecord | None:
    """Return a record from its file, or else from its copy."""
    cache = found.cache
    record, copy = None, read_record_copy(cache, shard)

    def check(content: bytes) -> str:
        nonlocal record
        try:
            record = read_record(cache, shard)
        except CacheError:
            return "is damaged" if checksum_matches(content) else "its digest does not match"
        return ""

    found.read("record", cache.record_file(shard), check, shard=shard)
    file = cache.record_copy_file(shard)
    if file.exists() or (found.head and found.head.attributes.cache):
        found.read("record copy", file, lambda content: "" if copy else "is damaged", shard=shard)
        if record and copy and record != copy:
            found.damaged("record copy", file, "does not match the record", shard=shard)
    return record or copy


def _disagreements(found: Examination, commit: Commit, ledger: Ledger) -> Iterator[tuple[int, str]]:
    """Yield (shard, problem) for every record that contradicts a commit and its ledger."""
    line_of = ledger.index()
    names = [spec.name for spec in commit.terms.arrays]
    for shard, slots in ledger.live_slots().items():
        record = found.records.get(shard)
        if record is None:
            continue
        for slot, path in slots.items():
            digest = record.files[slot].digest if slot < len(record.files) else None
            if digest != digest_hex(ledger.digests[line_of[path]]):
                yield shard, f"records other content of {path} than commit {commit.id}"
        rows = record.rows_of(slots)
        for name in names:
            digests = record.arrays[name].digests if name in record.arrays else ()
            if not all(row < len(digests) and digests[row] for row in rows):
                yield shard, f"records no image in {name} for some slices of commit {commit.id}"


# --- the rest ------------------------------------------------------------------------------------------------------


def examine_rest(found: Examination) -> None:
    """Check the plain copies and the pending plan, and list the files that do not belong to the cache."""
    cache, head = found.cache, found.head
    if head:
        found.read("copy", cache.metadata_copy, _is_copy(head.attributes.table_digest))
        found.read("copy", cache.rejects_copy, _is_copy(head.private.rejects_digest))
        found.read("copy", cache.copied_file, same_as(head.id.encode()))
    pending = cache.pending_file
    if pending.exists():
        found.read("pending", pending, lambda content: _is_pending(cache, content))
    found.files |= {cache.lock_file, cache.publisher_file, cache.head_file}
    for folder, folders, names in os.walk(cache.root):
        if Path(folder) == cache.private and ASIDE in folders:
            folders.remove(ASIDE)
        found.unknown += [path for name in names if (path := Path(folder) / name) not in found.files]
    found.unknown.sort()


def _is_pending(cache: Cache, content: bytes) -> str:
    try:
        read_pending(cache)
    except CacheError:
        return "is damaged" if checksum_matches(content) else "its digest does not match"
    return ""


def _is_copy(digest: str) -> Callable[[bytes], str]:
    return lambda content: "" if sha256(content) == digest else "is not a copy of the current commit's table"

"""Write a commit: the tables, the records behind them, and the commit that refers to them, with the root last."""

import dataclasses
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cache import commits, copies
from pipeline.cache.attributes import Attributes, Private, Terms
from pipeline.cache.backups import Backup, encode_backup
from pipeline.cache.commits import Commit, make_commit
from pipeline.cache.done_records import read_record, write_record
from pipeline.cache.files import sha256, write_atomic
from pipeline.cache.ledger import Ledger
from pipeline.cache.paths import ROOT_DOCUMENT, Cache
from pipeline.cache.shard_record import ShardRecord
from pipeline.errors import CacheError
from pipeline.planning.stages import ArrayPath
from pipeline.tables.tables import Tables, make_tables, to_csv


def tables_of(cache: Cache, ledger: Ledger, terms: Terms, image_id: str, labels: Any) -> Tables:
    """Build the tables of a ledger's files from their done-records.

    Args:
        image_id, labels: as for `tables.make_tables`.

    Raises:
        CacheError: a record is missing or damaged.
    """
    records = {shard: require_record(cache, shard) for shard in sorted(ledger.live_slots())}
    return make_tables(ledger, records, terms.rows_per_shard, image_id, labels)


def require_record(cache: Cache, shard: int) -> ShardRecord:
    """Read the done-record of a shard that must have one.

    Raises:
        CacheError: it is missing or damaged.
    """
    record = read_record(cache, shard)
    if record is None:
        raise CacheError(f"{cache.record_file(shard)}: missing; run: pipeline verify --repair")
    return record


@dataclass(frozen=True)
class NewCommit:
    """The content of a new commit.

    Attributes:
        ledger: the files of the commit.
        tables: from `tables_of`.
        terms: the terms of the commit.
        arrays: path -> zarr.json of the array.
        private: the private part, except for the fields that `write_commit` fills in: `before`, `rejects_digest` and
            `z_from`.
    """

    ledger: Ledger
    tables: Tables
    terms: Terms
    arrays: Mapping[ArrayPath, Any]
    private: Private


def write_commit(cache: Cache, before: Commit | None, new: NewCommit) -> Commit:
    """Publish the commit that follows `before`; the first commit gives the cache its identity."""
    tables = new.tables
    table, rejects = to_csv(tables.metadata), to_csv(tables.rejects)
    identity = before.attributes.cache if before else ""
    attributes = Attributes(
        cache=identity or secrets.token_hex(16),
        sequence=before.attributes.sequence + 1 if before else 1,
        commit="",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        terms=new.terms,
        num_slices=len(tables.metadata),
        table_digest=sha256(table),
        counts=tables.counts,
        label_counts=tables.label_counts,
    )
    history = (before.id, *before.private.before) if before else ()
    z_from = {name: tuple((first, stop) for first, stop in ranges) for name, ranges in tables.z_from.items()}
    if before and not identity:
        _copy_records(cache)
    private = dataclasses.replace(new.private, before=history, rejects_digest=sha256(rejects), z_from=z_from)
    named = {path: {**node, "attributes": {"cache": attributes.cache}} for path, node in new.arrays.items()}
    commit = make_commit(attributes, named, private)
    publish_commit(cache, Backup(commit, table, rejects, new.ledger))
    return commit


def _copy_records(cache: Cache) -> None:
    """Write the missing second copies of the done-records of a cache in format version 1."""
    for shard in cache.recorded_shards():
        if not cache.record_copy_file(shard).exists():
            write_record(cache, require_record(cache, shard))


def publish_commit(cache: Cache, parts: Backup) -> None:
    """Make a commit the current one, in the order of docs/cache_format.md; the root is replaced last."""
    commit = parts.commit
    documents = commit.documents()
    for path, content in documents.items():
        if path != ROOT_DOCUMENT:
            write_atomic(cache.root / path, content)
    write_parts(cache, parts)
    write_atomic(cache.root_document, documents[ROOT_DOCUMENT])
    copies.update_copies(cache, commit)


def write_parts(cache: Cache, parts: Backup) -> None:
    """Write everything that a commit refers to except the arrays, then its backup, then the commit file itself."""
    commit = parts.commit
    write_atomic(cache.table_file(commit.attributes.table_digest), parts.table)
    write_atomic(cache.rejects_file(commit.private.rejects_digest), parts.rejects)
    commits.write_ledger(cache, commit.id, parts.ledger)
    if commit.attributes.cache:
        write_atomic(cache.private_file(commit.id), commit.private_content())
    write_atomic(cache.backup_file(commit.id), encode_backup(parts))
    write_atomic(cache.commit_file(commit.id), commit.content())

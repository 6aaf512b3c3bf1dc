"""This file lands a commit: the tables, what they came from, and the commit that names them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cache import layout
from pipeline.cache.commits import Commit, kept_before, make_commit, publish_commit
from pipeline.cache.files import sha256
from pipeline.cache.ledger import Ledger
from pipeline.errors import CacheError
from pipeline.tables.tables import Tables, make_tables, to_csv


def tables_of(root: Path, ledger: Ledger, terms: Mapping[str, Any], image_id: str, labels: Any) -> Tables:
    """Make the tables of a ledger's files from their done-records.

    Args:
        terms: the root attributes that do not depend on the slices, `classes` and `rows_per_shard` among them.
        image_id, labels: as for `tables.make_tables`.

    Raises:
        CacheError: a record is missing or damaged.
    """
    records = {shard: require_record(root, shard) for shard in sorted(ledger.live_slots())}
    classes = [klass["name"] for klass in terms["classes"]]
    return make_tables(ledger, records, terms["rows_per_shard"], image_id, labels, classes)


def require_record(root: Path, shard: int) -> dict[str, Any]:
    """The done-record of a shard that must have one.

    Raises:
        CacheError: it is missing or damaged.
    """
    record = layout.read_record(root, shard)
    if record is None:
        raise CacheError(f"{layout.record_file(root, shard)}: missing; run: pipeline verify --repair")
    return record


def land(
    root: Path,
    before: Commit | None,
    ledger: Ledger,
    tables: Tables,
    terms: Mapping[str, Any],
    arrays: Mapping[str, Any],
    private: Mapping[str, Any],
) -> Commit:
    """Publish the commit that follows `before`.

    Args:
        terms: the root attributes that do not depend on the slices.
        arrays: path -> zarr.json of the array.
        private: of the commit, without what this finds: `before`, `rejects_digest` and `z_from`.
    """
    table, rejects = to_csv(tables.metadata), to_csv(tables.rejects)
    attributes = {
        **terms,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "num_slices": len(tables.metadata),
        "metadata": {"file": f"tables/{sha256(table)}.csv", "digest": sha256(table)},
        "counts": tables.counts,
        "label_counts": tables.label_counts,
    }
    history = [before.id, *kept_before(root, before)] if before else []
    found = {"before": history, "rejects_digest": sha256(rejects), "z_from": tables.z_from}
    commit = make_commit(attributes, arrays, {**private, **found})
    publish_commit(root, commit, table, rejects, ledger)
    return commit

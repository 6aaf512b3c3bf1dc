"""Commit a build: labels, tables, and the private part that only later builds use."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from pipeline.cache import commits
from pipeline.cache.attributes import Private, Terms
from pipeline.cache.commits import Commit
from pipeline.cache.committing import NewCommit, tables_of, write_commit
from pipeline.cache.ledger import Entry, ledger_of, merge
from pipeline.cache.pending import clear_pending, first_free_shard, read_pending
from pipeline.engine.arrays import array_documents
from pipeline.engine.versions import library_versions
from pipeline.engine.work import Work
from pipeline.errors import SourceError
from pipeline.planning.built import choices
from pipeline.planning.settings import Settings
from pipeline.planning.survey import Survey
from pipeline.tables.labels import labels_of_table, read_labels
from pipeline.tables.patients import hash_patient
from pipeline.words import counted


def find_labels(work: Work) -> Any:
    """Return the labels from their file, or from the commit if the file has vanished; None if no labels are wanted."""
    labels, head = work.settings.labels, work.found.head
    if labels.file.filepath is None:
        return None
    classes = [klass.name for klass in work.settings.classes]
    if labels.content is not None:
        convert_patient = functools.partial(hash_patient, work.options.patient_key)
        return read_labels(labels.file, labels.content, classes, convert_patient)
    assert head
    return labels_of_table(labels.file, commits.read_table(work.cache, head), classes)


def commit_build(work: Work, entries: list[Entry], labels: Any, say: Callable[[str], None]) -> Commit:
    """Write the tables and the commit, and remove the pending plan.

    Args:
        entries: ledger entries of the files that the build has read.
        labels: from `find_labels`.
        say: called with a line about series that share a UID.

    Raises:
        SourceError: a first build has no slices, or no slice has a label.
    """
    cache, settings, found = work.cache, work.settings, work.found
    ledger = merge(found.plan.resolved.kept, ledger_of(entries))
    terms = _terms(work, labelled=labels is not None)
    tables = tables_of(cache, ledger, terms, settings.image_id, labels)
    _refuse_unusable(settings, found, tables, labels)
    if tables.shared_uids:
        shared = counted(tables.shared_uids, "Series Instance UID")
        say(f"{shared} in several studies; each study's is a separate series")
    pending = read_pending(cache)
    next_shard = first_free_shard(cache, found.head, pending)
    arrays = array_documents(work, terms.arrays, rows=next_shard * terms.rows_per_shard)
    private = _private(work, next_shard)
    commit = write_commit(cache, found.head, NewCommit(ledger, tables, terms, arrays, private))
    if pending and pending.reading == found.wanted.reading:
        clear_pending(cache)
    return commit


def _terms(work: Work, *, labelled: bool) -> Terms:
    settings = work.settings
    return Terms(
        dataset=settings.dataset,
        windows=settings.windows,
        arrays=work.found.wanted.arrays,
        classes=settings.classes if labelled else (),
        splits=settings.splits,
        rows_per_shard=settings.layout.rows_per_shard,
        label_level=settings.labels.file.level,
    )


def _private(work: Work, next_shard: int) -> Private:
    """Return the private part, without the fields that `write_commit` fills in."""
    settings, wanted = work.settings, work.found.wanted
    return Private(
        before=(),
        next_shard=next_shard,
        reading=wanted.reading,
        reading_settings=dataclasses.asdict(settings.reading),
        image_id=settings.image_id,
        table=wanted.table,
        patient_key=settings.patient_key_digest,
        source=settings.src,
        choices=choices(settings),
        versions=library_versions(),
        rejects_digest="",
        z_from={},
    )


def _refuse_unusable(settings: Settings, found: Survey, tables: Any, labels: Any) -> None:
    """Raise a SourceError if a first build has no slices, or if no slice has a label."""
    if found.head is None and tables.metadata.empty:
        kinds = ", ".join(f"{number:,} {kind.replace('_', ' ')}" for kind, number in tables.counts.items() if number)
        first = tables.rejects.iloc[0]
        raise SourceError(
            f"{settings.src}: none of its files is a CT slice ({kinds}); {first['path']}: {first['message']}"
        )
    if labels is not None and tables.label_counts["slices_without_label"] == len(tables.metadata) > 0:
        raise SourceError(
            f"{settings.labels.file.filepath}: none of its {len(labels):,} {_labelled_items(settings)} is in the data, "
            f"{labels.index[0]} for example; are these the labels of this data set, and is {_label_key(settings)} "
            "right in the catalog?"
        )


def _labelled_items(settings: Settings) -> str:
    return {"slice": "images", "study": "studies", "patient": "patients"}.get(settings.labels.file.level, "series")


def _label_key(settings: Settings) -> str:
    """Return the setting of the catalog that decides how labels are matched, as the catalog writes it."""
    level = settings.labels.file.level
    return f"image_id: {settings.image_id}" if level == "slice" else f"labels: {{level: {level}}}"

"""Make the tables of a commit from the records of its shards: metadata.csv, rejects.csv and the counts."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cache.ledger import Ledger
from pipeline.cache.shard_record import ShardRecord
from pipeline.dicom.records import SliceRecord
from pipeline.dicom.rejects import REJECT_CODES
from pipeline.planning.catalog import TABLE_COLUMNS
from pipeline.tables.series import SERIES_KEY, count_shared_uids, place_slices

# Each code in rejects.csv -> its class in the counts, and a description.
REJECTS = REJECT_CODES | {
    "unreadable": ("failed", "The file or archive member cannot be read; the message has the system's reason."),
    "killed_worker": (
        "failed",
        "The decoder crashed, hung or took too much memory, also when the file was tried on its own.",
    ),
    "duplicate": (
        "duplicates",
        "The same slice of the same series, with equal HU and geometry, was found under a path that sorts before it.",
    ),
    "duplicate_conflict": (
        "failed",
        "The same SOP Instance UID and frame with other HU, geometry, patient, study or series; none of them is used.",
    ),
}
POSITION_COLUMNS = ("px", "py", "pz")
ORIENTATION_COLUMNS = ("rx", "ry", "rz", "cx", "cy", "cz")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables and counts of a commit.

    Attributes:
        metadata: columns and order as in docs/cache_format.md.
        rejects: path, code, message.
        counts, label_counts: as in the root attributes.
        z_from: for slices that were not placed by their position, `z_from` of `series.place_slices` -> ranges of rows,
            [first, stop].
        shared_uids: number of Series Instance UIDs that occur in several studies.
    """

    metadata: pd.DataFrame
    rejects: pd.DataFrame
    counts: dict[str, int]
    label_counts: dict[str, int]
    z_from: dict[str, list[list[int]]]
    shared_uids: int


def make_tables(
    ledger: Ledger,
    records: Mapping[int, ShardRecord],
    rows_per_shard: int,
    image_id: str,
    labels: pd.DataFrame | None,
) -> Tables:
    """Make the tables of a commit.

    Args:
        ledger: the files of the commit.
        records: the record of each shard in the ledger.
        rows_per_shard: rows of a shard.
        image_id: `sop_instance_uid` or `file_stem`.
        labels: from `labels.read_labels`, with a column per class, or None. A label of a series, study or patient
            applies to all of its slices.
    """
    classes = [] if labels is None else list(labels.columns)
    slots = ledger.live_slots()
    slices = _slices(slots, records, rows_per_shard)
    rejects = _rejects(slots, records)
    slices, duplicates = _drop_duplicates(slices)
    rejects = pd.concat([rejects, duplicates], ignore_index=True)
    counts = _count(ledger, slices, rejects)
    placed = place_slices(slices)
    slices = slices.assign(z_mm=placed["z_mm"], z_norm=placed["z_norm"])
    if image_id == "sop_instance_uid":
        slices["image_id"] = slices["sop_instance_uid"]
    else:
        slices["image_id"] = slices["path"].map(lambda path: PurePosixPath(path).stem)
    label_counts = _join_labels(slices, labels, classes)
    order = [*SERIES_KEY, "z_mm", "sop_instance_uid", "frame"]
    metadata = slices.sort_values(order, ignore_index=True)[[*TABLE_COLUMNS, *classes]]
    rejects = rejects.sort_values(["path", "frame", "code"], ignore_index=True)
    of_frame = rejects["frame"] > 0
    rejects.loc[of_frame, "message"] = "frame " + rejects["frame"].astype(str) + ": " + rejects["message"]
    rejects = rejects[["path", "code", "message"]]
    return Tables(
        metadata, rejects, counts, label_counts, _z_from(slices["row"], placed["z_from"]), count_shared_uids(slices)
    )


def _slices(
    live: Mapping[int, Mapping[int, str]], records: Mapping[int, ShardRecord], rows_per_shard: int
) -> pd.DataFrame:
    """Return the slices of the live slots, one line each, with path and row."""
    lines = [
        (*placed.record, slots[placed.slot], shard * rows_per_shard + position)
        for shard, slots in live.items()
        for position, placed in enumerate(records[shard].slices)
        if placed and placed.slot in slots
    ]
    names = (*SliceRecord._fields, "path", "row")
    columns: dict[str, list[Any]] = {name: [line[place] for line in lines] for place, name in enumerate(names)}
    positions_mm = vector_columns(columns.pop("position"), POSITION_COLUMNS)
    orientations = vector_columns(columns.pop("orientation"), ORIENTATION_COLUMNS)
    frame = pd.DataFrame({**columns, **positions_mm, **orientations})
    for name in ("slice_location", "instance_number"):
        frame[name] = pd.to_numeric(frame[name]).astype(float)
    return frame


def vector_columns(values: list[Any], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Convert vectors, or None, to one float64 column for each component; NaN for None."""
    missing = [float("nan")] * len(names)
    table = np.array([value or missing for value in values], np.float64).reshape(len(values), len(names))
    return {name: table[:, column] for column, name in enumerate(names)}


def _rejects(live: Mapping[int, Mapping[int, str]], records: Mapping[int, ShardRecord]) -> pd.DataFrame:
    lines = [
        (slots[found.slot], found.frame, found.code, found.message)
        for shard, slots in live.items()
        for found in records[shard].rejects
        if found.slot in slots
    ]
    return pd.DataFrame(lines, columns=["path", "frame", "code", "message"])


def _drop_duplicates(slices: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Drop slices with the same SOP Instance UID and frame as another: all but that with the smallest path, or all.

    All are dropped unless they agree in HU, geometry, patient, study and series: if two patients have the same slice,
    there is no telling whose it is.

    Returns:
        The remaining slices, and a reject for each dropped one.
    """
    key = ["sop_instance_uid", "frame"]
    twice = slices.duplicated(key, keep=False)
    groups = slices[twice].sort_values("path").groupby(key, sort=False)
    dropped: list[int] = []
    lines = []
    whose = ["patient_id", "study_instance_uid", "series_instance_uid"]
    same = ["pixel_digest", *whose, *POSITION_COLUMNS, *ORIENTATION_COLUMNS]
    for (_, frame), group in groups:
        equal = (
            not group[same]
            .ne(group[same].iloc[0])
            .where(group[same].notna() | group[same].iloc[0].notna())
            .any(axis=None)
        )
        paths = group["path"].tolist()
        out = group.index[1:] if equal else group.index
        dropped += out.tolist()
        for number, path in enumerate(paths):
            if equal and number:
                lines.append((path, frame, "duplicate", f"the same slice as {paths[0]}"))
            elif not equal:
                other = paths[0] if number else paths[1]
                what = "other pixels, geometry, patient, study or series"
                message = f"same SOP Instance UID as {other}, but {what}; remove the wrong one"
                lines.append((path, frame, "duplicate_conflict", message))
    rejects = pd.DataFrame(lines, columns=["path", "frame", "code", "message"])
    return slices.drop(index=dropped), rejects


def _z_from(rows: pd.Series, z_from: pd.Series) -> dict[str, list[list[int]]]:
    """Return `Tables.z_from`, as ranges because slices with the same fallback are mostly in adjacent rows."""
    found = {}
    for name, group in rows[z_from != "position"].groupby(z_from):
        ordered = np.sort(group.to_numpy())
        runs = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
        found[str(name)] = [[int(run[0]), int(run[-1]) + 1] for run in runs]
    return found


def _count(ledger: Ledger, slices: pd.DataFrame, rejects: pd.DataFrame) -> dict[str, int]:
    """Count the files by class: `gave_slices` if a file gave any slice, else that of its first reject."""
    classes = rejects["code"].map({code: kind for code, (kind, _) in REJECTS.items()})
    gave = set(slices["path"])
    by_path = dict(zip(rejects["path"].to_list()[::-1], classes.to_list()[::-1], strict=True))
    counts = dict.fromkeys(("files", "gave_slices", "duplicates", "not_a_slice", "failed", "not_dicom"), 0)
    counts["files"] = len(ledger)
    for path in ledger.paths:
        counts["gave_slices" if path in gave else by_path[path]] += 1
    return counts


def _join_labels(slices: pd.DataFrame, labels: pd.DataFrame | None, classes: list[str]) -> dict[str, int]:
    """Add a column for each class to `slices`: 0, 1, numbers in between, or empty. Return `Tables.label_counts`."""
    if labels is None:
        labels = pd.DataFrame(columns=classes, dtype=np.float32, index=pd.Index([], name="image_id"))
    key = slices[labels.index.name]
    joined = labels.reindex(key).to_numpy(np.float32)
    for column, klass in enumerate(classes):
        values = joined[:, column]
        soft = bool(((values > 0) & (values < 1)).any())
        slices[klass] = values if soft else pd.array(values, dtype="Int8")
    without = np.isnan(joined).all(1)
    return {
        "slices_without_label": int(without.sum()),
        "labels_without_slice": int((~labels.index.isin(key)).sum()),
        "any_disagrees": _any_disagrees(joined, classes),
    }


def _any_disagrees(labels: np.ndarray, classes: list[str]) -> int:
    """Return the number of slices whose `any` is not the maximum of the other classes."""
    if "any" not in classes or len(classes) < 2:
        return 0
    others = np.delete(labels, classes.index("any"), 1)
    any_label = labels[:, classes.index("any")]
    known = ~np.isnan(labels).any(1)
    return int((others.max(1, initial=0)[known] != any_label[known]).sum())


def to_csv(frame: pd.DataFrame) -> bytes:
    """Return a table as CSV according to docs/cache_format.md, with floats in the shortest form that is exact."""
    return frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogateescape")


def logical_digest(metadata: pd.DataFrame, digests: Mapping[str, Mapping[int, str]], windows: Iterable[Any]) -> str:
    """Return a SHA-256 (hex) of the content of a cache, independent of rows, commits, times, paths and patient ids.

    It covers the windows and, in the order of (sop_instance_uid, frame), the UIDs, frame, z_mm, z_norm and labels, and
    the digests of the images of each size.

    Args:
        metadata: the table.
        digests: size as text -> row -> xxh3-128 (hex) of the image.
        windows: as JSON data.
    """
    table = metadata.sort_values(["sop_instance_uid", "frame"], ignore_index=True)
    digest = hashlib.sha256(json.dumps(list(windows), sort_keys=True).encode())
    digest.update(to_csv(table.drop(columns=["row", "image_id", "patient_id"])))
    for size, of_row in sorted(digests.items()):
        digest.update(f"{size}\n".encode())
        digest.update("\n".join(of_row[row] for row in table["row"].tolist()).encode())
    return digest.hexdigest()

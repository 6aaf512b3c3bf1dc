"""Compute the numbers of the report from the table of a commit and the records of its shards."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.cache.commits import Commit, read_rejects, read_table
from pipeline.cache.committing import require_record
from pipeline.cache.paths import Cache
from pipeline.cache.shard_record import ShardRecord
from pipeline.dicom.records import SliceRecord
from pipeline.tables.series import SERIES_KEY, place_slices, series_facts
from pipeline.tables.tables import ORIENTATION_COLUMNS, POSITION_COLUMNS, vector_columns

EXAMPLES = 3
POSITION_BINS = 20
# Smaller rotations are within the precision of direction cosines (4 to 7 digits) and of positioning a head.
ROTATED_DEGREES = 1.0
# Name of a count -> the fields of `SliceRecord` that it counts.
COUNTED = {
    "coding": ("transfer_syntax",),
    "manufacturer": ("manufacturer",),
    "stored": ("bits_stored", "signed", "slope", "intercept"),
    "frame": ("height", "width"),
    "repair": ("repair",),
    "kind": ("image_kind",),
    "lossy": ("lossy",),
    "from_study": ("patient_from_study",),
}


class Count(NamedTuple):
    """The number of slices, and of their series, that have a value."""

    value: tuple[Any, ...]
    slices: int
    series: int


@dataclass(frozen=True, slots=True)
class Storage:
    """The images of one size in the shards of a commit, including dead ones, and their bytes, including the index."""

    images: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """The numbers of a commit.

    Attributes:
        table: sorted by row: row, patient_id, study_instance_uid, series_instance_uid, z_norm, and a float32 column for
            each class, NaN without a label.
        counted: name in `COUNTED` -> counts, most slices first.
        patients_from_study: number of patients that are identified by their study, as PatientID was empty.
        z_from: `z_from` of `series.place_slices` -> number of slices.
        series: as from `series.series_facts`, and rotated_degrees: median angle between image rows and the body's
            left-right axis in the axial plane, 0 to 180; NaN without orientations.
        storage: size as text -> its storage.
        versions: library -> all versions that wrote the shards or the commit, sorted.
    """

    table: pd.DataFrame
    counted: Mapping[str, tuple[Count, ...]]
    patients_from_study: int
    z_from: Mapping[str, int]
    series: pd.DataFrame
    storage: Mapping[str, Storage]
    versions: Mapping[str, tuple[str, ...]]


def count_slices(cache: Cache, head: Commit) -> Facts:
    """Read the table of a commit and the records of its shards, one at a time.

    Raises:
        CacheError: one of them is missing or damaged.
    """
    table = _read_table(cache, head)
    seen = _Seen(head)
    shards = table["row"].to_numpy() // head.terms.rows_per_shard
    for shard, start in zip(*np.unique(shards, return_index=True), strict=True):
        stop = np.searchsorted(shards, shard, side="right")
        seen.add(int(shard), require_record(cache, int(shard)), table.iloc[start:stop])
    geometry = seen.geometry()
    series = series_facts(geometry)
    rotated = pd.Series(np.degrees(np.abs(np.arctan2(geometry["ry"].to_numpy(), geometry["rx"].to_numpy()))))
    series["rotated_degrees"] = rotated.groupby([geometry[column] for column in SERIES_KEY]).median()
    return Facts(
        table=table,
        counted={name: seen.tallies[name].counts() for name in COUNTED},
        patients_from_study=len(seen.from_study),
        z_from=dict(Counter(place_slices(geometry)["z_from"]).most_common()),
        series=series,
        storage={size: Storage(seen.images[size], seen.bytes[size]) for size in seen.sizes},
        versions={library: tuple(sorted(found)) for library, found in sorted(seen.versions.items())},
    )


def _read_table(cache: Cache, head: Commit) -> pd.DataFrame:
    classes = head.terms.class_names
    texts = ["patient_id", "study_instance_uid", "series_instance_uid"]
    kinds: dict[str, Any] = {"row": np.int64, **dict.fromkeys(texts, str), "z_norm": float}
    kinds |= dict.fromkeys(classes, np.float32)
    content = read_table(cache, head)
    table = pd.read_csv(
        io.BytesIO(content),
        usecols=list(kinds),
        dtype=kinds,
        keep_default_na=False,
        na_values={klass: [""] for klass in classes},
    )
    return table.sort_values("row", ignore_index=True)


class _Tally:
    """Counts slices and series by value."""

    def __init__(self) -> None:
        self._slices: Counter[tuple[Any, ...]] = Counter()
        self._series: defaultdict[tuple[Any, ...], set[tuple[str, ...]]] = defaultdict(set)

    def add(self, values: Iterable[tuple[Any, ...]], series: Iterable[tuple[str, ...]]) -> None:
        for value, key in zip(values, series, strict=True):
            self._slices[value] += 1
            self._series[value].add(key)

    def counts(self) -> tuple[Count, ...]:
        found = (Count(value, slices, len(self._series[value])) for value, slices in self._slices.items())
        return tuple(sorted(found, key=lambda count: (-count.slices, count.value)))


class _Seen:
    """The counts of the records that were read so far; of each slice it keeps only the geometry, some 200 bytes."""

    def __init__(self, head: Commit) -> None:
        self.tallies = {name: _Tally() for name in COUNTED}
        self.from_study: set[str] = set()
        self.images: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.versions: defaultdict[str, set[str]] = defaultdict(set)
        self._rows_per_shard = head.terms.rows_per_shard
        self._arrays = {str(spec.size_px): spec.name for spec in head.terms.arrays}
        self._geometry: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        self._note_versions(head.private.versions)

    def add(self, shard: int, record: ShardRecord, lines: pd.DataFrame) -> None:
        """Add the slices of one shard that are in the table, in `lines` sorted by row."""
        positions = (lines["row"] - shard * self._rows_per_shard).tolist()
        placed = [record.slices[position] for position in positions]
        columns = zip(*(found.record for found in placed if found), strict=True)
        slices = {name: list(values) for name, values in zip(SliceRecord._fields, columns, strict=True)}
        keys = list(zip(*(lines[column] for column in SERIES_KEY), strict=True))
        for name, fields in COUNTED.items():
            self.tallies[name].add(zip(*(slices[field] for field in fields), strict=True), keys)
        self.from_study |= set(lines["patient_id"][slices["patient_from_study"]])
        self._place(slices, lines)
        for size, name in self._arrays.items():
            self.images[size] += sum(map(bool, record.arrays[name].digests))
            self.bytes[size] += record.arrays[name].bytes
            self._note_versions(record.arrays[name].versions)
        self._note_versions(record.versions)

    @property
    def sizes(self) -> list[str]:
        """Image sizes in pixels, as text."""
        return list(self._arrays)

    def geometry(self) -> pd.DataFrame:
        """Return the argument of `series.place_slices`, one line per slice."""
        return pd.DataFrame({name: np.concatenate(parts) for name, parts in self._geometry.items()})

    def _place(self, slices: Mapping[str, list[Any]], lines: pd.DataFrame) -> None:
        columns = {
            **{column: lines[column].to_numpy(object) for column in SERIES_KEY},
            "sop_instance_uid": np.array(slices["sop_instance_uid"], object),
            "frame": np.array(slices["frame"], np.int64),
            "slice_location": np.array(slices["slice_location"], float),  # None becomes NaN
            "instance_number": np.array(slices["instance_number"], float),
            **vector_columns(slices["position"], POSITION_COLUMNS),
            **vector_columns(slices["orientation"], ORIENTATION_COLUMNS),
        }
        for name, column in columns.items():
            self._geometry[name].append(column)

    def _note_versions(self, versions: Mapping[str, str]) -> None:
        for library, version in versions.items():
            self.versions[library].add(version)


# --- prevalence and rejects ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prevalence:
    """The prevalence of a class.

    Attributes:
        slices, patients: number of those with a label.
        positive_slices, positive_patients: number of those that are positive; a patient is if any slice is.
        by_position: (20,) float64, positive share of the labelled slices, by z_norm in steps of 0.05; NaN without any.
    """

    slices: int
    positive_slices: int
    patients: int
    positive_patients: int
    by_position: np.ndarray


def find_prevalence(table: pd.DataFrame, klass: str) -> Prevalence:
    """Count a class over the slices of `Facts.table`."""
    labelled = table[table[klass].notna()]
    positive = labelled[klass].to_numpy() == 1
    bins = np.minimum((labelled["z_norm"].to_numpy() * POSITION_BINS).astype(int), POSITION_BINS - 1)
    every = np.bincount(bins, minlength=POSITION_BINS)
    with np.errstate(invalid="ignore"):
        by_position = np.bincount(bins[positive], minlength=POSITION_BINS) / every
    patients = labelled["patient_id"]
    return Prevalence(len(labelled), int(positive.sum()), patients.nunique(), patients[positive].nunique(), by_position)


@dataclass(slots=True)
class Rejected:
    """The lines of rejects.csv with one code.

    Attributes:
        lines: number of lines.
        examples: the first few different paths.
        more: whether there are more paths.
    """

    lines: int
    examples: list[str]
    more: bool


def count_rejects(cache: Cache, head: Commit) -> dict[str, Rejected]:
    """Count the rejects of a commit by code, the most frequent first.

    Raises:
        CacheError: rejects.csv is missing or damaged.
    """
    content = read_rejects(cache, head)
    found: dict[str, Rejected] = {}
    # A path is not always valid text.
    for line in csv.DictReader(io.StringIO(content.decode("utf-8", "backslashreplace"), newline="")):
        of = found.setdefault(line["code"], Rejected(0, [], more=False))
        of.lines += 1
        if line["path"] not in of.examples:
            if len(of.examples) < EXAMPLES:
                of.examples.append(line["path"])
            else:
                of.more = True
    return dict(sorted(found.items(), key=lambda item: (-item[1].lines, item[0])))

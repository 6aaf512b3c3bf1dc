"""Count what the report says, record by record, over the slices that a commit names."""

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
# Direction cosines are written with 4 to 7 digits, and heads are never placed better than this.
TURNED_DEGREES = 1.0
# What is counted, and the fields of a slice's record that make its value.
COUNTED = {
    "coding": ("transfer_syntax",),
    "maker": ("manufacturer",),
    "stored": ("bits_stored", "signed", "slope", "intercept"),
    "frame": ("height", "width"),
    "repair": ("repair",),
    "kind": ("image_kind",),
    "lossy": ("lossy",),
    "from_study": ("patient_from_study",),
}


class Count(NamedTuple):
    """How many slices, in how many series, have a value."""

    value: tuple[Any, ...]
    slices: int
    series: int


@dataclass(frozen=True, slots=True)
class Storage:
    """What one size takes in the shards of the commit: images stored, dead ones included, and bytes with the index."""

    images: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is counted over the slices of a commit.

    Attributes:
        table: sorted by row: row, patient_id, study_instance_uid, series_instance_uid, z_norm, one float column a
            class, NaN where there is no label.
        counted: by the names of `COUNTED`; the most slices first.
        patients_from_study: patients for whom their study stands, because PatientID was empty.
        z_from: what places a slice -> slices.
        series: as `series.series_facts` gives it, and turned_degrees between the rows of the picture and the body's
            left-right axis, in the axial plane, the median, 0 to 180; NaN without orientation.
        storage: size as text -> what it takes.
        versions: library -> every version that had a part in the shards or the commit, sorted.
    """

    table: pd.DataFrame
    counted: Mapping[str, tuple[Count, ...]]
    patients_from_study: int
    z_from: Mapping[str, int]
    series: pd.DataFrame
    storage: Mapping[str, Storage]
    versions: Mapping[str, tuple[str, ...]]


def count_slices(cache: Cache, head: Commit) -> Facts:
    """Read the commit's table and, one after another, the done-records of its shards.

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
    turned = pd.Series(np.degrees(np.abs(np.arctan2(geometry["ry"].to_numpy(), geometry["rx"].to_numpy()))))
    series["turned_degrees"] = turned.groupby([geometry[column] for column in SERIES_KEY]).median()
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
    """Counts slices, and knows their series, by value."""

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
    """What the records that were read so far come to; of a slice only its place is kept, some 200 bytes."""

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
        """Add the slices of one shard that are in the table; `lines` are theirs, sorted by row."""
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
        """Image sides, as text."""
        return list(self._arrays)

    def geometry(self) -> pd.DataFrame:
        """What `series.place_slices` needs, one line a slice."""
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


# --- what follows from them ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prevalence:
    """How often a class is found.

    Attributes:
        slices, patients: with a label for it.
        positive_slices, positive_patients: of these, a patient by any slice.
        by_position: (20,) share of the labelled slices, by z_norm in steps of 0.05; NaN where there are none.
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
        examples: the first few paths, each once.
        more: whether there are other paths.
    """

    lines: int
    examples: list[str]
    more: bool


def count_rejects(cache: Cache, head: Commit) -> dict[str, Rejected]:
    """Count the commit's rejects by code, the most first.

    Raises:
        CacheError: their table is missing or damaged.
    """
    content = read_rejects(cache, head)
    found: dict[str, Rejected] = {}
    # A path is what the file system has, not always text.
    for line in csv.DictReader(io.StringIO(content.decode("utf-8", "backslashreplace"), newline="")):
        of = found.setdefault(line["code"], Rejected(0, [], more=False))
        of.lines += 1
        if line["path"] not in of.examples:
            if len(of.examples) < EXAMPLES:
                of.examples.append(line["path"])
            else:
                of.more = True
    return dict(sorted(found.items(), key=lambda item: (-item[1].lines, item[0])))

"""The contents of a commit as types: the root attributes that readers see, and the part for builds."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cache.parsing import parse
from pipeline.planning.catalog import ClassWeight, LabelLevel, Splits, Window
from pipeline.planning.stages import ArraySpec

FORMAT = "ich-slices"
FORMAT_VERSION = 2
COUNTS = ("files", "gave_slices", "duplicates", "not_a_slice", "failed", "not_dicom")
LABEL_COUNTS = ("slices_without_label", "labels_without_slice", "any_disagrees")
COMMIT_ID = re.compile(r"[0-9a-f]{16}")
CACHE_ID = re.compile(r"[0-9a-f]{32}")
DIGEST = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
MAX_ROWS_PER_SHARD = 8192
MAX_SHARDS = 10_000_000


def matching(pattern: re.Pattern[str], text: str, what: str) -> str:
    """The text, where it is wholly of the pattern.

    Raises:
        ValueError: it is not.
    """
    if not pattern.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a valid {what}")
    return text


@dataclass(frozen=True, slots=True)
class Terms:
    """The root attributes that do not depend on the slices: what a build was asked for.

    Attributes:
        dataset: name of the catalog entry.
        windows: in channel order.
        arrays: one a size, ascending; each stands for the images and the sums of that size.
        classes: in column order, empty where there are no labels.
        label_level: what one label is for: slice, series, study or patient.
        splits: shares of the patients.
    """

    dataset: str
    windows: tuple[Window, ...]
    arrays: tuple[ArraySpec, ...]
    classes: tuple[ClassWeight, ...]
    splits: Splits
    rows_per_shard: int
    label_level: LabelLevel = "slice"

    @property
    def class_names(self) -> list[str]:
        return [klass.name for klass in self.classes]


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of the root group, as in docs/cache_format.md.

    Attributes:
        cache: the cache's identity, 32 hex digits made at random; "" in format version 1, which had none.
        sequence: number of the commit, higher than that of every commit before it; 0 in format version 1.
        commit: the commit's id, "" before it has one.
        created: UTC, ISO 8601, seconds.
        table_digest: SHA-256 of the table, which names its file.
        counts, label_counts: in the order of `COUNTS` and `LABEL_COUNTS`.
    """

    cache: str
    sequence: int
    commit: str
    created: str
    terms: Terms
    num_slices: int
    table_digest: str
    counts: Mapping[str, int]
    label_counts: Mapping[str, int]

    @property
    def format_version(self) -> int:
        return 2 if self.cache else 1

    def as_json(self) -> dict[str, Any]:
        """The attributes as the root holds them."""
        terms = self.terms
        newer = {"cache": self.cache, "sequence": self.sequence, "label_level": terms.label_level}
        return (newer if self.cache else {}) | {
            "format": FORMAT,
            "format_version": self.format_version,
            "commit": self.commit,
            "created": self.created,
            "dataset": terms.dataset,
            "windows": [dataclasses.asdict(window) for window in terms.windows],
            "sizes": {str(spec.size_px): spec.images_path for spec in terms.arrays},
            "sums": {str(spec.size_px): spec.sums_path for spec in terms.arrays},
            "classes": [dataclasses.asdict(klass) for klass in terms.classes],
            "splits": dataclasses.asdict(terms.splits),
            "rows_per_shard": terms.rows_per_shard,
            "num_slices": self.num_slices,
            "metadata": {"file": f"tables/{self.table_digest}.csv", "digest": self.table_digest},
            "counts": dict(self.counts),
            "label_counts": dict(self.label_counts),
        }


@dataclass(frozen=True, slots=True)
class _Table:
    file: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Stored:
    """The attributes' own form; nothing beside `parse_attributes` sees it."""

    format: str
    format_version: int
    commit: str
    created: str
    dataset: str
    windows: tuple[Window, ...]
    sizes: Mapping[str, str]
    sums: Mapping[str, str]
    classes: tuple[ClassWeight, ...]
    splits: Splits
    rows_per_shard: int
    num_slices: int
    metadata: _Table
    counts: Mapping[str, int]
    label_counts: Mapping[str, int]


def parse_attributes(content: Any) -> Attributes:
    """Check and parse the root attributes; their paths are of the one form that docs/cache_format.md gives.

    Raises:
        ValueError: they are not of a version that this program knows, or not whole.
    """
    if not isinstance(content, dict):
        raise ValueError("the attributes are not a mapping")
    plain = {key: value for key, value in content.items() if key not in ("cache", "sequence", "label_level")}
    stored = parse(_Stored, plain, "attributes")
    cache, sequence = parse(str, content.get("cache", ""), "cache"), parse(int, content.get("sequence", 0), "sequence")
    arrays = tuple(sorted((_spec_of_size(*item) for item in stored.sizes.items()), key=lambda spec: spec.size_px))
    level = parse(str, content.get("label_level", "slice"), "label_level")
    common = stored.dataset, stored.windows, arrays, stored.classes, stored.splits, stored.rows_per_shard
    if level not in typing.get_args(LabelLevel):
        raise ValueError(f"label_level is {level[:20]!r}")
    terms = Terms(*common, label_level=typing.cast(LabelLevel, level))
    found = Attributes(
        cache=matching(CACHE_ID, cache, "cache identity") if stored.format_version > 1 else "",
        sequence=sequence,
        commit=matching(COMMIT_ID, stored.commit, "commit id") if stored.commit else "",
        created=matching(TIME, stored.created, "time"),
        terms=terms,
        num_slices=stored.num_slices,
        table_digest=matching(DIGEST, stored.metadata.digest, "digest"),
        counts={kind: stored.counts.get(kind, 0) for kind in COUNTS},
        label_counts={kind: stored.label_counts.get(kind, 0) for kind in LABEL_COUNTS},
    )
    if not 1 <= terms.rows_per_shard <= MAX_ROWS_PER_SHARD or min(sequence, stored.num_slices) < 0:
        raise ValueError("an attribute is out of range")
    if found.as_json() != content:
        raise ValueError("the attributes do not follow the cache format")
    return found


def _spec_of_size(size: str, path: str) -> ArraySpec:
    spec = ArraySpec.of_path(path)
    if str(spec.size_px) != size:
        raise ValueError(f"size {size[:20]} names {path[:80]}")
    return spec


@dataclass(frozen=True, slots=True)
class Choices:
    """What the options of a build chose, and not the catalog; `planning.built` knows the meaning."""

    sizes_chosen: bool
    label_file: str
    labels_digest: str
    labels_chosen: bool


@dataclass(frozen=True, slots=True)
class Private:
    """What only builds use of a commit; it never leaves the cache's own folder.

    Attributes:
        before: ids of the commits before it, the newest first.
        next_shard: the first shard number that was not given out.
        reading: fingerprint of how its files were read; `reading_settings` are the settings in it.
        image_id: as in the catalog.
        table: fingerprint of its table.
        patient_key: fingerprint of the key that patient ids were hashed with, "" where they are kept.
        source: where the files were, as it was given.
        choices: None in format version 1, which did not keep them.
        versions: library -> version, where the commit was made.
        rejects_digest: SHA-256 of its list of rejects.
        z_from: what placed slices that were not placed by their position -> ranges of rows, the end excluded.
    """

    before: tuple[str, ...]
    next_shard: int
    reading: str
    reading_settings: Mapping[str, Any]
    image_id: str
    table: str
    patient_key: str
    source: str
    choices: Choices | None
    versions: Mapping[str, str]
    rejects_digest: str
    z_from: Mapping[str, tuple[tuple[int, int], ...]]

    def problem(self) -> str | None:
        """What is wrong with the values."""
        if not all(COMMIT_ID.fullmatch(before) for before in self.before):
            return "the id of an earlier commit is not valid"
        if not DIGEST.fullmatch(self.rejects_digest):
            return "the digest of the rejects is not valid"
        return None if 0 <= self.next_shard <= MAX_SHARDS else f"next_shard is {self.next_shard}"

    def as_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        return content if self.choices else {key: value for key, value in content.items() if key != "choices"}

"""Types for the contents of a commit: the public root attributes, and the private part that only builds use."""

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
    """Return the text unchanged if the whole of it matches the pattern.

    Raises:
        ValueError: it does not match; `what` names the kind of text in the message.
    """
    if not pattern.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a valid {what}")
    return text


@dataclass(frozen=True, slots=True)
class Terms:
    """The root attributes that do not depend on the slices: the settings that a build was given.

    Attributes:
        dataset: name of the catalog entry.
        windows: in channel order.
        arrays: one per size, ascending; each describes both the images and the sums of that size.
        classes: in column order, empty if there are no labels.
        label_level: what one label applies to: slice, series, study or patient.
        splits: each subset's share of the patients.
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
        cache: the cache's identity, 32 random hex digits; "" in format version 1, which had none.
        sequence: number of the commit, higher than that of every earlier commit; 0 in format version 1.
        commit: the commit's id, "" before one is assigned.
        created: UTC, ISO 8601, seconds.
        table_digest: SHA-256 of the table, from which its file is named.
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
        """Return the attributes as they are stored in the root."""
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
    """The stored form of the attributes, used only by `parse_attributes`."""

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
    """Parse the root attributes, and check that their paths have the form that docs/cache_format.md prescribes.

    Raises:
        ValueError: their version is unknown to this program, or they are incomplete or invalid.
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
    """The settings of a build that came from its options rather than from the catalog; see `planning.built`."""

    sizes_chosen: bool
    label_file: str
    labels_digest: str
    labels_chosen: bool


@dataclass(frozen=True, slots=True)
class Private:
    """The part of a commit that only builds use; it is never published.

    Attributes:
        before: ids of the earlier commits, newest first.
        next_shard: the first shard number that has not been assigned yet.
        reading: fingerprint of how the files were read; `reading_settings` are the settings that went into it.
        image_id: as in the catalog.
        table: fingerprint of the table.
        patient_key: fingerprint of the key that patient ids were hashed with, "" if they are kept unhashed.
        source: location of the source files, as it was given.
        choices: None in format version 1, which did not record them.
        versions: library -> version, in the environment that made the commit.
        rejects_digest: SHA-256 of the list of rejects.
        z_from: for slices that were not placed by their position, what placed them instead -> half-open ranges of rows.
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
        """Return what is wrong with the values, None if nothing is."""
        if not all(COMMIT_ID.fullmatch(before) for before in self.before):
            return "the id of an earlier commit is not valid"
        if not DIGEST.fullmatch(self.rejects_digest):
            return "the digest of the rejects is not valid"
        return None if 0 <= self.next_shard <= MAX_SHARDS else f"next_shard is {self.next_shard}"

    def as_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        return content if self.choices else {key: value for key, value in content.items() if key != "choices"}

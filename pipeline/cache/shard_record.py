"""Types for a shard's done-record: what was read for the shard, and what every array stores of it."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.cache.attributes import MAX_ROWS_PER_SHARD
from pipeline.cache.parsing import parse
from pipeline.dicom.records import SliceRecord, Unit
from pipeline.planning.stages import ArraySpec

FILE_FIELDS = ("path", "why", "size", "mtime_ns", "digest", "first", "stop")
XXH3 = re.compile(r"[0-9a-f]{32}")
SLICE_FIELDS = ("slot", *SliceRecord._fields)
REJECT_FIELDS = ("slot", "frame", "code", "message")
# The image_kind of slices in records of READ_VERSION 2 and earlier, which have no such column.
KIND_NOT_KEPT = "not kept"


class FileLine(NamedTuple):
    """The file in one slot of the shard's plan. Size, time and digest are None if it gave no entry.

    Attributes:
        why: reason why it was read.
        digest: xxh3-128 hex of its content.
        first, stop: its frames, as in `Unit`.
    """

    path: str
    why: str
    size: int | None
    mtime_ns: int | None
    digest: str | None
    first: int
    stop: int


class PlacedSlice(NamedTuple):
    """The slice in one row, and the slot of the file that it came from."""

    slot: int
    record: SliceRecord


class RejectLine(NamedTuple):
    """A file, or one frame of it, that gave no slice."""

    slot: int
    frame: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StoredImages:
    """What one array stores of the shard.

    Attributes:
        bytes: size of the shard's file, 0 where there is none.
        digests: row -> xxh3-128 hex of its image, None where there is none.
        built, versions: when and with which libraries.
    """

    bytes: int
    digests: tuple[str | None, ...]
    built: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A finished shard.

    Attributes:
        reading: fingerprint of the settings that its files were read with.
        built, versions: when they were read, and with which libraries.
        files: one per slot.
        slices: one per row; None in a row whose slice has been lost.
        rejects: files and frames that gave no slice.
        arrays: name of the array -> what it stores.
    """

    shard: int
    reading: str
    built: str
    versions: Mapping[str, str]
    files: tuple[FileLine, ...]
    slices: tuple[PlacedSlice | None, ...]
    rejects: tuple[RejectLine, ...]
    arrays: Mapping[str, StoredImages]

    def rows_of(self, slots: Iterable[int]) -> list[int]:
        """Return the rows within the shard of the slices that came from these slots."""
        wanted = set(slots)
        return [row for row, placed in enumerate(self.slices) if placed and placed.slot in wanted]

    def units(self) -> tuple[Unit, ...]:
        """Return the units that the shard was filled from."""
        return tuple(
            Unit(slot, file.path, file.why, file.first, file.stop, (file.digest or "") if file.stop else "")
            for slot, file in enumerate(self.files)
        )

    def as_json(self) -> dict[str, Any]:
        """Return the record as a JSON document; columns take a third of the space of rows."""
        nothing = (-1, *[None] * len(SliceRecord._fields))
        slices = [(placed.slot, *placed.record) if placed else nothing for placed in self.slices]
        return {
            "shard": self.shard,
            "reading": self.reading,
            "built": self.built,
            "versions": dict(self.versions),
            "files": _columns(FILE_FIELDS, self.files),
            "slices": _columns(SLICE_FIELDS, slices),
            "rejects": _columns(REJECT_FIELDS, self.rejects),
            "arrays": {name: dataclasses.asdict(array) for name, array in self.arrays.items()},
        }

    @staticmethod
    def of(content: Any) -> "ShardRecord":
        """Parse a record's JSON document.

        Raises:
            ValueError: it is not a valid record.
        """
        if not isinstance(content, dict):
            raise ValueError("the record is not a mapping")
        lines = {
            "files": _lines(FILE_FIELDS, content.get("files")),
            "slices": [_placed(line) for line in _lines(SLICE_FIELDS, _with_kinds(content.get("slices")))],
            "rejects": _lines(REJECT_FIELDS, content.get("rejects")),
        }
        found = parse(ShardRecord, {**content, **lines})
        if max(len(found.slices), *(len(of.digests) for of in found.arrays.values()), 0) > MAX_ROWS_PER_SHARD:
            raise ValueError("the record has more rows than a shard")
        for name, images in found.arrays.items():
            ArraySpec.of_name(name)
            if any(digest and not XXH3.fullmatch(digest) for digest in images.digests):
                raise ValueError("the record has an invalid digest")
            if any(images.digests[len(found.slices) :]):
                raise ValueError("the record has an image without a slice")
        slots = {line.slot for line in found.rejects} | {placed.slot for placed in found.slices if placed}
        if slots and not 0 <= min(slots) <= max(slots) < len(found.files):
            raise ValueError("the record refers to a file that it does not list")
        return found


def _placed(line: list[Any]) -> list[Any] | None:
    slot, *record = line
    return None if slot == -1 else [slot, record]


def _columns(names: Sequence[str], lines: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: [line[place] for line in lines] for place, name in enumerate(names)}


def _lines(names: Sequence[str], columns: Any) -> list[list[Any]]:
    if not isinstance(columns, dict) or set(columns) != set(names) or not all(map(_is_list, columns.values())):
        raise ValueError(f"the record's columns are not {', '.join(names)}")
    return [list(line) for line in zip(*(columns[name] for name in names), strict=True)]


def _with_kinds(columns: Any) -> Any:
    """Return the columns of slices, adding the image kinds that older versions did not record."""
    if not isinstance(columns, dict) or "image_kind" in columns or not _is_list(columns.get("slot")):
        return columns
    return columns | {"image_kind": [KIND_NOT_KEPT] * len(columns["slot"])}


def _is_list(content: Any) -> bool:
    return isinstance(content, list)

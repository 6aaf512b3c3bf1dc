"""The stages of a build, their versions, and the fingerprints of their results."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.planning.settings import Settings

# Incremented by hand when a stage gives other values for the same input; tests compare stored outputs.
READ_VERSION = 3
RENDER_VERSION = 1
SERIES_VERSION = 3
LABELS_VERSION = 2
NAME = re.compile(r"[1-9][0-9]{0,4}-[0-9a-f]{8}")


class ArrayPath(str):
    """The path of an array inside a cache: `images/<size>-<8 hex digits>` or `sums/<size>-<8 hex digits>`.

    Raises:
        ValueError: the text does not have this form.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "ArrayPath":
        folder, _, name = text.partition("/")
        if folder not in ("images", "sums") or not NAME.fullmatch(name):
            raise ValueError(f"{text[:80]!r} is not an array's path")
        return super().__new__(cls, text)

    @property
    def name(self) -> str:
        """The name of the array, `<size>-<8 hex digits>`."""
        return self.partition("/")[2]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One image array of the cache.

    Attributes:
        size_px: image size in pixels.
        fingerprint: of the conversion, 8 hex digits.

    Raises:
        ValueError: the size or the fingerprint does not have this form.
    """

    size_px: int
    fingerprint: str

    def __post_init__(self) -> None:
        if type(self.size_px) is not int or not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name[:80]!r} is not an array's name")

    @staticmethod
    def of_name(name: str) -> "ArraySpec":
        """Parse a name, `<size>-<8 hex digits>`."""
        size, _, fingerprint = name.partition("-")
        return ArraySpec(int(size) if size.isascii() and size.isdigit() else 0, fingerprint)

    @staticmethod
    def of_path(path: str) -> "ArraySpec":
        """Parse a path, `images/<name>` or `sums/<name>`."""
        return ArraySpec.of_name(ArrayPath(path).name)

    @property
    def name(self) -> str:
        return f"{self.size_px}-{self.fingerprint}"

    @property
    def images_path(self) -> ArrayPath:
        return ArrayPath(f"images/{self.name}")

    @property
    def sums_path(self) -> ArrayPath:
        return ArrayPath(f"sums/{self.name}")


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Fingerprints of everything except the files' contents that the results of a build depend on.

    Attributes:
        reading: of scanning and decoding; if it changes, all files are read again, into new rows.
        arrays: one for each size; if one changes, the same rows are stored in another array.
        table: of series and labels; if it changes, only the table is written again.
    """

    reading: str
    arrays: tuple[ArraySpec, ...]
    table: str


def fingerprint(content: Any) -> str:
    """Return the SHA-256 (hex) of canonical JSON for dataclasses, mappings, sequences, text, numbers and None.

    Raises:
        TypeError: there is a value of another type.
    """
    return hashlib.sha256(json.dumps(_plain(content), sort_keys=True, allow_nan=False).encode()).hexdigest()


def fingerprints(settings: Settings) -> Fingerprints:
    """Return the fingerprints of the results of a build with these settings.

    That of reading includes rows_per_shard, which changes no pixel but determines where rows are stored.
    """
    read = ["read", READ_VERSION, settings.reading, settings.patient_key_digest, settings.layout.rows_per_shard]
    reading = fingerprint(read)
    arrays = tuple(
        ArraySpec(size_px, fingerprint(["render", RENDER_VERSION, reading, settings.windows, size_px])[:8])
        for size_px in settings.sizes
    )
    classes = settings.classes if settings.labels.file.filepath else ()
    form = replace(settings.labels.file, filepath=None)
    labels = [LABELS_VERSION, form, settings.labels.digest, settings.image_id, classes]
    table = fingerprint(["table", SERIES_VERSION, labels, settings.dataset, settings.splits])
    return Fingerprints(reading, arrays, table)


def _plain(content: Any) -> Any:
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        return {spec.name: _plain(getattr(content, spec.name)) for spec in dataclasses.fields(content)}
    if isinstance(content, Mapping):
        return {_text(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(item) for item in content]
    if content is None or type(content) in (str, int, float, bool):
        return content
    raise TypeError(f"a fingerprint cannot be made from {type(content).__name__}")


def _text(key: Any) -> str:
    if type(key) is not str:
        raise TypeError("a fingerprint's keys must be text")
    return key

"""List the stages in order, each with its name, version and settings, and their fingerprints."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.planning.settings import Settings

# Raised by hand when a stage gives other values for the same input; tests hold stored outputs against it.
READ_VERSION = 3
RENDER_VERSION = 1
SERIES_VERSION = 3
LABELS_VERSION = 2
NAME = re.compile(r"[1-9][0-9]{0,4}-[0-9a-f]{8}")


class ArrayPath(str):
    """The path of an array inside a cache: `images/<size>-<8 hex digits>` or `sums/<size>-<8 hex digits>`.

    Raises:
        ValueError: the text is of no such form.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "ArrayPath":
        folder, _, name = text.partition("/")
        if folder not in ("images", "sums") or not NAME.fullmatch(name):
            raise ValueError(f"{text[:80]!r} is not an array's path")
        return super().__new__(cls, text)

    @property
    def name(self) -> str:
        """The name of the array."""
        return self.partition("/")[2]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One image array of the cache: its side and the digits that name its conversion.

    Raises:
        ValueError: the side or the digits cannot be part of a path inside a cache.
    """

    size_px: int
    fingerprint: str

    def __post_init__(self) -> None:
        if type(self.size_px) is not int or not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name[:80]!r} is not an array's name")

    @staticmethod
    def of_name(name: str) -> "ArraySpec":
        """The array of a name, `<size>-<8 hex digits>`."""
        size, _, fingerprint = name.partition("-")
        return ArraySpec(int(size) if size.isascii() and size.isdigit() else 0, fingerprint)

    @staticmethod
    def of_path(path: str) -> "ArraySpec":
        """The array of a path, `images/<name>` or `sums/<name>`."""
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
    """What each stage's result depends on, beside the content of the files.

    Attributes:
        reading: of scan and decode; another one means that every file is read into new rows.
        arrays: one image array a size; another one means another array for the same rows.
        table: of series, labels and commit; another one means only a new table.
    """

    reading: str
    arrays: tuple[ArraySpec, ...]
    table: str


def fingerprint(content: Any) -> str:
    """SHA-256 hex of the canonical JSON of dataclasses, mappings, sequences, text, numbers and None.

    Raises:
        TypeError: any other type, so that nothing enters by its repr.
    """
    return hashlib.sha256(json.dumps(_plain(content), sort_keys=True, allow_nan=False).encode()).hexdigest()


def fingerprints(settings: Settings) -> Fingerprints:
    """The fingerprints that a build with these settings must find or make.

    rows_per_shard is no property of a pixel, but of where a row lies, so another one means other rows.
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

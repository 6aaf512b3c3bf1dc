"""Read a commit of a cache: check its id, compare it with the root, and validate every path and type."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.data.folder import REPAIR, Folder
from training.data.mirror import Mirror
from training.errors import CacheError

FORMAT = "ich-slices"
FORMAT_VERSION = 2
COMMIT_ID = re.compile(r"[0-9a-f]{16}")
CACHE_ID = re.compile(r"[0-9a-f]{32}")
DIGEST = re.compile(r"[0-9a-f]{64}")
LABEL_LEVEL = re.compile("slice|series|study|patient")
ARRAY_PATH = re.compile(r"(images|sums)/([1-9][0-9]{0,4})-[0-9a-f]{8}")

MOST_NAME = 1000


class ArrayPath(str):
    """The path of an array inside a cache: `images/<size>-<8 hex digits>` or `sums/<size>-<8 hex digits>`.

    Raises:
        ValueError: if the text does not have this form.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "ArrayPath":
        return super().__new__(cls, _matching(ARRAY_PATH, text))

    @property
    def size(self) -> str:
        """Image side in pixels."""
        return self.partition("/")[2].partition("-")[0]


@dataclass(frozen=True, slots=True)
class Window:
    """A display range: [level - width/2, level + width/2] HU is mapped to [0, 1]."""

    name: str
    level_hu: float
    width_hu: float


@dataclass(frozen=True, slots=True)
class Commit:
    """The content of a commit, as docs/cache_format.md describes it.

    Attributes:
        cache: the cache's identity, 32 hex digits; "" in format version 1, which had none.
        id: the first 16 hex digits of the SHA-256 of the commit's content.
        windows: in channel order.
        class_weights: of the classes, in column order.
        splits: proportions of patients for train, validation and test.
        label_level: what a label describes: slice, series, study or patient.
        sizes, sums: image side in pixels -> path of its image array, of its sums array.
        table_digest: SHA-256 of the table, from which its file is named.
        arrays: path -> the array's zarr.json.
    """

    cache: str
    id: str
    dataset: str
    windows: tuple[Window, ...]
    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    splits: tuple[float, float, float]
    sizes: Mapping[int, ArrayPath]
    sums: Mapping[int, ArrayPath]
    rows_per_shard: int
    num_slices: int
    table_digest: str
    arrays: Mapping[ArrayPath, Any]
    label_level: str = "slice"

    @property
    def table_name(self) -> str:
        """Name of the table's file."""
        return f"tables/{self.table_digest}.csv"


def read_commit(files: Folder | Mirror, commit: str | None) -> Commit:
    """Read one commit, or the current one, whose attributes must equal those of the root.

    Nothing else in the root is used: how the arrays are stored is read from the commit.

    Args:
        commit: its id; None for the current one.

    Raises:
        CacheError: if there is no cache, it is unfinished or damaged, its format or version is not supported, or it
            has no such commit.
    """
    root = None if commit else _read_root(files)
    wanted = commit or str(_attributes(root)["commit"])
    stored = _read_json(files, _commit_name(files, wanted, chosen=commit is not None))
    try:
        attributes, arrays, private = stored["attributes"], stored["arrays"], stored["private"]
        unnamed = {key: value for key, value in attributes.items() if key != "commit"}
        intact = attributes["commit"] == wanted == _sha256(_canonical([unnamed, arrays, private]))[:16]
    except (KeyError, TypeError, AttributeError, ValueError):
        intact = False
    if not intact:
        name = f"commits/{wanted}.json"
        raise CacheError(f"{files.origin(name)}: the commit is damaged: its digest does not match its id; {REPAIR}")
    if root is not None and _canonical(_attributes(root)) != _canonical(attributes):
        raise CacheError(
            f"{files.origin('zarr.json')}: the root is damaged: it does not match commit {wanted}; {REPAIR}"
        )
    _check_format(files.address, attributes)
    try:
        return _parse(attributes, arrays)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CacheError(f"{files.address}: the commit's attributes are damaged ({error!r}); {REPAIR}") from error


def _read_root(files: Folder | Mirror) -> dict[str, Any]:
    path = files.address
    if not files.exists("zarr.json"):
        if not files.exists(""):
            remedy = "check the address" if "://" in path else f"run: pipeline build --src DICOMS --out {path}"
            raise CacheError(f"{path}: no cache here; {remedy}")
        if files.exists(".pipeline"):
            raise CacheError(f"{path}: its first build has not finished; run the same pipeline build again")
        raise CacheError(f"{path}: not a cache: it has no zarr.json")
    root = _read_json(files, "zarr.json")
    _check_format(path, _attributes(root))
    if not COMMIT_ID.fullmatch(str(_attributes(root).get("commit"))):
        raise CacheError(f"{files.origin('zarr.json')}: the root is damaged: it does not name a commit; {REPAIR}")
    return root


def _attributes(root: Any) -> dict[str, Any]:
    found = root.get("attributes") if isinstance(root, dict) else None
    return found if isinstance(found, dict) else {}


def _commit_name(files: Folder | Mirror, commit: str, *, chosen: bool) -> str:
    name = f"commits/{commit}.json"
    if COMMIT_ID.fullmatch(commit) and files.exists(name):
        return name
    if not chosen:
        raise CacheError(f"{files.origin(name)}: the current commit is missing; {REPAIR}")
    current = _attributes(_read_root(files)).get("commit")
    kept = [entry.removesuffix(".json") for entry in files.names("commits") if entry.endswith(".json")]
    near = difflib.get_close_matches(commit, kept, n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"the current one is {current}; to list all: pipeline info {files.address}"
    )
    raise CacheError(f"{files.address}: has no commit {commit[:80]!r}; {hint}")


def _read_json(files: Folder | Mirror, name: str) -> dict[str, Any]:
    try:
        content = json.loads(files.read(name))
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{files.origin(name)}: cannot be read ({error}); {REPAIR}") from error
    if not isinstance(content, dict):
        raise CacheError(f"{files.origin(name)}: not a JSON object; {REPAIR}")
    return content


def _check_format(path: str, attributes: Mapping[str, Any]) -> None:
    if attributes.get("format") != FORMAT:
        raise CacheError(f"{path}: a Zarr store, but not a cache of slices: its attribute `format` is not {FORMAT}")
    version = attributes.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CacheError(f"{path}: its format_version {version!r} is not a version; {REPAIR}")
    if version > FORMAT_VERSION:
        raise CacheError(
            f"{path}: has format version {version}, but this program reads up to {FORMAT_VERSION}; upgrade ich-cache"
        )


def _parse(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> Commit:
    splits, table = attributes["splits"], attributes["metadata"]
    if table["file"] != f"tables/{_matching(DIGEST, table['digest'])}.csv":
        raise ValueError(f"{str(table['file'])[:80]!r} is not the name of a table")
    sizes, sums = (_paths(folder, attributes[key]) for folder, key in (("images", "sizes"), ("sums", "sums")))
    if arrays.keys() != {*sizes.values(), *sums.values()}:
        raise ValueError("the arrays do not match the sizes")
    return Commit(
        cache=_matching(CACHE_ID, attributes["cache"]) if attributes["format_version"] > 1 else "",
        id=attributes["commit"],
        dataset=_name(attributes["dataset"]),
        windows=tuple(
            Window(_name(w["name"]), _number(w["level_hu"]), _number(w["width_hu"])) for w in attributes["windows"]
        ),
        classes=tuple(_name(entry["name"]) for entry in attributes["classes"]),
        class_weights=tuple(_number(entry["weight"]) for entry in attributes["classes"]),
        splits=(_number(splits["train"]), _number(splits["validation"]), _number(splits["test"])),
        sizes=dict(sorted(sizes.items())),
        sums=sums,
        rows_per_shard=_count(attributes["rows_per_shard"], 1),
        num_slices=_count(attributes["num_slices"], 0),
        table_digest=table["digest"],
        arrays={ArrayPath(path): document for path, document in arrays.items()},
        label_level=_matching(LABEL_LEVEL, attributes.get("label_level", "slice")),
    )


def _paths(folder: str, content: Mapping[str, Any]) -> dict[int, ArrayPath]:
    """Return the array of each size in a folder, checked against its key."""
    found = {size: ArrayPath(path) for size, path in content.items()}
    for size, path in found.items():
        if path != f"{folder}/{path.partition('/')[2]}" or path.size != size:
            raise ValueError(f"{path} is not an array of size {size[:20]} in {folder}")
    return {int(size): path for size, path in found.items()}


def _name(text: Any) -> str:
    """Return a name of a class, window or data set, checked to be printable."""
    if not isinstance(text, str) or not 0 < len(text) <= MOST_NAME or not text.isprintable():
        raise ValueError(f"{str(text)[:80]!r} is not a name")
    return text


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"{str(text)[:80]!r} is not of the form {pattern.pattern}")
    return text


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:80]!r} is not a number")
    return value


def _count(value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{str(value)[:80]!r} is not a count")
    return value


def _canonical(content: Any) -> bytes:
    """Return the canonical JSON whose digest is the commit's id: docs/cache_format.md, "Identity"."""
    return (json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

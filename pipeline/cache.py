"""This file is the cache on disk: commits, done-records, the pending plan, the ledger and the lock."""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CacheError
from pipeline.files import PARTIAL, canonical, make_folder, read_sealed, seal, sha256, write_atomic
from pipeline.ledger import Ledger, empty_ledger
from pipeline.records import Unit
from pipeline.stages import ArraySpec

FORMAT = "ich-slices"
FORMAT_VERSION = 1
PRIVATE = ".pipeline"


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of the cache that readers may see.

    Attributes:
        attributes: of the root group, as in docs/cache_format.md.
        arrays: path -> the array's zarr.json.
        private: fingerprints, settings and counters that only builds use.
    """

    attributes: Mapping[str, Any]
    arrays: Mapping[str, Any]
    private: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.attributes["commit"])

    def content(self) -> bytes:
        return canonical(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Pending:
    """A plan of rows that was kept before its first shard was written.

    Attributes:
        reading: the fingerprint of reading that it was made for.
        shards: shard -> its units; a shard is done when its record is there.
    """

    reading: str
    shards: Mapping[int, tuple[Unit, ...]]


# --- commits -------------------------------------------------------------------------------------------------------


def head_id(root: Path) -> str | None:
    """The current commit's id, None before the first commit.

    Raises:
        CacheError: the folder is no cache of ours, or its root is damaged.
    """
    file = root / "zarr.json"
    try:
        attributes = json.loads(file.read_bytes())["attributes"]
        if attributes["format"] != FORMAT:
            raise KeyError("format")
        version, commit = int(attributes["format_version"]), str(attributes["commit"])
    except FileNotFoundError:
        _refuse_foreign(root)
        return None
    except NotADirectoryError:
        raise CacheError(f"{root}: is a file, not a cache folder; give another --out") from None
    except (ValueError, KeyError, TypeError) as error:
        hint = "run: pipeline verify --repair" if (root / PRIVATE).is_dir() else "give another --out"
        raise CacheError(f"{file}: is not the root of a cache of this program, or is damaged; {hint}") from error
    if version > FORMAT_VERSION:
        raise CacheError(f"{root}: format version {version} is newer than this program's {FORMAT_VERSION}; update it")
    return commit


def _refuse_foreign(root: Path) -> None:
    if root.is_dir() and not (root / PRIVATE).is_dir() and any(root.iterdir()):
        raise CacheError(f"{root}: holds other files than a cache; give an empty or new folder for --out")


def read_commit(root: Path, commit: str) -> Commit:
    """Read one commit and check that its content makes its id.

    Raises:
        CacheError: unknown or damaged.
    """
    file = root / "commits" / f"{commit}.json"
    try:
        found = Commit(**json.loads(file.read_bytes()))
    except FileNotFoundError:
        raise CacheError(f"{file}: there is no such commit; `pipeline info` lists those that are kept") from None
    except (ValueError, TypeError) as error:
        raise CacheError(f"{file}: damaged ({error}); run: pipeline verify --repair") from error
    if commit_id(found) != commit:
        raise CacheError(f"{file}: damaged, its digest does not match; run: pipeline verify --repair")
    return found


def commit_id(commit: Commit) -> str:
    """The id that the content of a commit makes: 16 hex digits of the SHA-256 of all but the id itself."""
    attributes = {key: value for key, value in commit.attributes.items() if key != "commit"}
    return sha256(canonical([attributes, commit.arrays, commit.private]))[:16]


def head(root: Path) -> Commit | None:
    """The current commit, None before the first."""
    commit = head_id(root)
    return read_commit(root, commit) if commit else None


def make_commit(attributes: Mapping[str, Any], arrays: Mapping[str, Any], private: Mapping[str, Any]) -> Commit:
    """Put a commit together and give it the id that its content makes."""
    unnamed = Commit({**attributes, "commit": ""}, arrays, private)
    return Commit({**attributes, "commit": commit_id(unnamed)}, arrays, private)


def publish_commit(root: Path, commit: Commit, table: bytes, rejects: bytes, ledger: Ledger) -> None:
    """Make a commit the one that readers see, in the order of docs/cache_format.md; the last write is the root."""
    documents = zarr_documents(commit)
    for key, content in documents.items():
        if key != "zarr.json":
            write_atomic(root / key, content)
    write_atomic(root / commit.attributes["metadata"]["file"], table)
    write_atomic(rejects_file(root, commit), rejects)
    write_atomic(root / "commits" / f"{commit.id}.json", commit.content())
    write_ledger(root, commit.id, ledger)
    write_atomic(root / "zarr.json", documents["zarr.json"])
    mend_copies(root, commit)


def rejects_file(root: Path, commit: Commit) -> Path:
    return root / PRIVATE / "rejects" / f"{commit.private['rejects_digest']}.csv"


def mend_copies(root: Path, commit: Commit) -> bool:
    """Make metadata.csv and rejects.csv copies of the current commit's tables; says whether they were not.

    A marker names the commit that was copied last, so that an unchanged build reads neither.
    """
    marker = root / PRIVATE / "copied"
    if marker.exists() and marker.read_text() == commit.id:
        return False
    write_atomic(root / "metadata.csv", (root / commit.attributes["metadata"]["file"]).read_bytes())
    write_atomic(root / "rejects.csv", rejects_file(root, commit).read_bytes())
    write_atomic(marker, commit.id.encode())
    return True


# --- arrays --------------------------------------------------------------------------------------------------------


def new_array_metadata(spec: ArraySpec, channels: int, rows: int, rows_per_shard: int, codecs: list[Any]) -> Any:
    """The zarr.json of an image array and of its sums array, by path."""
    side = spec.size_px
    inner = {"chunk_shape": [1, channels, side, side], "codecs": codecs, "index_location": "end"}
    inner["index_codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = [{"name": "sharding_indexed", "configuration": inner}]
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shapes = [rows, channels, side, side], [rows, channels, 2]
    return {
        spec.images_path: _array(shapes[0], [rows_per_shard, *shapes[0][1:]], "uint8", sharding),
        spec.sums_path: _array(shapes[1], [rows_per_shard, *shapes[1][1:]], "uint64", plain),
    }


def _array(shape: list[int], chunks: list[int], dtype: str, codecs: list[Any]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
    }


def zarr_documents(commit: Commit) -> dict[str, bytes]:
    """Every zarr.json of a commit by its key; the root carries all of them as consolidated metadata.

    Written out here and not by zarr-python so that the same commit gives the same bytes under every version of it,
    which is what `verify` compares; tests open the result with zarr-python and tensorstore.
    """
    nodes = {path.split("/")[0]: {"zarr_format": 3, "node_type": "group", "attributes": {}} for path in commit.arrays}
    nodes |= dict(commit.arrays)
    documents = {f"{path}/zarr.json": canonical(node) for path, node in nodes.items()}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    root = {"zarr_format": 3, "node_type": "group", "attributes": commit.attributes}
    return documents | {"zarr.json": canonical(root | {"consolidated_metadata": consolidated})}


def array_metadata(root: Path, path: str) -> Any | None:
    """The zarr.json that lies at an array's path, None where there is none."""
    try:
        return json.loads((root / path / "zarr.json").read_bytes())
    except FileNotFoundError:
        return None


def images_file(root: Path, spec: ArraySpec, shard: int) -> Path:
    return root / spec.images_path / "c" / str(shard) / "0" / "0" / "0"


def sums_file(root: Path, spec: ArraySpec, shard: int) -> Path:
    return root / spec.sums_path / "c" / str(shard) / "0" / "0"


# --- private state -------------------------------------------------------------------------------------------------


def ledger_file(root: Path, commit: str) -> Path:
    return root / PRIVATE / "ledgers" / commit


def read_ledger(root: Path, commit: str | None) -> Ledger:
    """The ledger of a commit, empty before the first.

    Raises:
        CacheError: missing or damaged.
    """
    if commit is None:
        return empty_ledger()
    try:
        return Ledger.decode(read_sealed(ledger_file(root, commit)))
    except FileNotFoundError:
        raise CacheError(f"{ledger_file(root, commit)}: missing; run: pipeline verify --repair") from None


def write_ledger(root: Path, commit: str, ledger: Ledger) -> None:
    write_atomic(ledger_file(root, commit), seal(ledger.encode()))


def record_file(root: Path, shard: int) -> Path:
    return root / PRIVATE / "shards" / f"{shard}.json"


def read_record(root: Path, shard: int) -> dict[str, Any] | None:
    """The done-record of a shard, None where it was never finished.

    Raises:
        CacheError: damaged.
    """
    try:
        return dict(json.loads(read_sealed(record_file(root, shard))))
    except FileNotFoundError:
        return None


def write_record(root: Path, shard: int, record: Mapping[str, Any]) -> None:
    """Say that a shard is complete: what was read for it and what every array holds of it."""
    write_atomic(record_file(root, shard), seal(canonical(record)))


def read_pending(root: Path) -> Pending | None:
    """The plan of rows that a build has not finished, None where there is none."""
    try:
        content = json.loads(read_sealed(root / PRIVATE / "pending.json"))
    except FileNotFoundError:
        return None
    shards = {
        int(shard): tuple(Unit(slot, *unit) for slot, unit in enumerate(units))
        for shard, units in content["shards"].items()
    }
    return Pending(content["reading"], shards)


def write_pending(root: Path, pending: Pending) -> None:
    shards = {str(shard): [[u.path, u.first, u.stop] for u in units] for shard, units in pending.shards.items()}
    content = canonical({"reading": pending.reading, "shards": shards})
    write_atomic(root / PRIVATE / "pending.json", seal(content))


def clear_pending(root: Path) -> None:
    (root / PRIVATE / "pending.json").unlink(missing_ok=True)


def next_shard(root: Path) -> int:
    """The first shard number that was never given out: not in a commit, a record or a pending plan."""
    commit, pending = head(root), read_pending(root)
    given = [int(path.stem) for path in (root / PRIVATE / "shards").glob("*.json")]
    committed = commit.private["next_shard"] if commit else 0
    return max([committed - 1, *given, *(pending.shards if pending else ())]) + 1


def collect_partials(root: Path) -> int:
    """Remove the temporary files of killed writers; returns how many. Only the holder of the lock may call it."""
    leftovers = list(root.rglob(f".*{PARTIAL}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


# --- one builder at a time -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(root: Path) -> Iterator[str]:
    """Hold the cache for one builder, by an OS lock that dies with the process; gives the lock's token.

    Raises:
        CacheError: another process holds it; says which and since when.
    """
    make_folder(root / PRIVATE)
    path = root / PRIVATE / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheError(f"{root}: {_holder(path)} is building it; wait for it to end, or end it") from None
        token = secrets.token_hex(16)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        holder = {"token": token, "process": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(handle, 0)
        os.pwrite(handle, canonical(holder), 0)
        yield token
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    with contextlib.suppress(ValueError, KeyError):
        holder = json.loads(path.read_bytes())
        return f"process {holder['process']} on {holder['host']}, since {holder['since']},"
    return "another process"


def holds_lock(root: Path, token: str) -> bool:
    """Whether the builder with this token is still the cache's builder, as far as the lock's file tells."""
    try:
        return bool(json.loads((root / PRIVATE / "lock").read_bytes())["token"] == token)
    except (OSError, ValueError, KeyError):
        return False


def refuse_other_key(root: Path, key_digest: str) -> None:
    """Refuse a patient key other than the one the cache was begun with.

    Raises:
        CacheError: the ids would no longer be those of the slices that are there.
    """
    commit = head(root)
    if commit and key_digest and commit.private["patient_key"] not in ("", key_digest):
        raise CacheError(
            f"{root}: was built with another patient key; give that one with --patient-key, or a new --out"
        )


def disk_need(sizes_px: Sequence[int], channels: int, slices: int) -> int:
    """Bytes that so many slices are likely to take, rounded up generously: 0.4 of the raw pixels.

    Source: 0.30 of the raw pixels for LZ4 on 52 real slices at 224, 0.26 at 380; records add about 1 KB a slice.
    """
    return sum(slices * int(0.4 * channels * side * side) for side in sizes_px) + 1024 * slices

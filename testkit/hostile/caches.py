"""Hostile caches: damaged ones, ones with false content but valid checksums, and ones with special files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.files import canonical, with_checksum
from pipeline.cli.main import main
from testkit.hostile.edits import edit, edit_bytes, replace
from testkit.hostile.engine import Command, Hostile, Kind
from testkit.small import Small, write, write_slices
from training.data.cache import open_cache
from training.data.shards import SliceReader

LABELS = {f"1.2.3.0.{number}": number % 2 for number in range(9)}


def valid_cache(folder: Path) -> Small:
    """Build a small cache with two commits, to be edited."""
    folder.mkdir(parents=True)
    small = small_of(folder)
    write_slices(small.src, range(5))
    small.build()
    write(small.src / "notes.txt", b"not DICOM")
    small.build()
    return small


def small_of(folder: Path) -> Small:
    return Small(folder, rows=4, labels=LABELS)


def content(path: Path, copies: Path | None) -> str:
    """Return a digest of all that training reads: pixels, sums, labels, positions, class weights, split shares."""
    cache = open_cache(path, local_copy=copies)
    table = cache.table.sort_values(["sop_instance_uid", "frame"])
    rows = table["row"].to_numpy()
    parts: list[Any] = [cache.windows, cache.classes, cache.class_weights.tolist(), cache.splits, cache.label_level]
    parts.append(table.drop(columns="row").to_csv(index=False))
    for size in cache.sizes:
        shape = cache.array(size).shape[1:]
        images = np.empty((len(table), int(np.prod(shape))), np.uint8)
        SliceReader(cache, size, table.index.to_numpy()).read(np.arange(len(table)), images)
        parts += [size, shape, cache.sums(size, rows).tolist(), hashlib.sha256(images.tobytes()).hexdigest()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def kinds(folder: Path) -> dict[str, Kind]:
    """Return the kinds of hostile caches, edited from a valid one that is built in a folder."""
    small = valid_cache(folder)
    right = content(small.out, None)
    makers: dict[str, Callable[[Small, np.random.Generator], str]] = {
        "cache: a damaged document": _damage_document,
        "cache: a damaged file": _damage_file,
        "cache: a replaced file": _replace_file,
    }
    found = {name: Kind(main, folder, _damaged(make, right)) for name, make in makers.items()}
    found["cache: a forged commit"] = Kind(main, folder, _forged(_sign_commit))
    found["cache: a forged shard record"] = Kind(main, folder, _forged(_checksum_record))
    return found


def _commands(small: Small, read: tuple[Command, ...]) -> tuple[Command, ...]:
    out = small.out
    look = (("info", out), ("info", out, "--digest"), ("why", out, "000.dcm"), ("plan", *small.options()))
    report = ("report", out, "--out", out / "report.html")
    work = (("verify", out), ("gc", out, "--yes"), ("publish", out, (small.folder / "there").as_uri()))
    repair = ("verify", out, "--repair", "--src", small.src)
    return (*read, *look, report, *work, repair, ("build", *small.options(), "--workers", 0))


def _damaged(
    make: Callable[[Small, np.random.Generator], str], right: str
) -> Callable[[Path, np.random.Generator], Hostile]:
    """Return a kind whose checksums are unchanged, so that only the valid content may be read."""

    def of(folder: Path, rng: np.random.Generator) -> Hostile:
        small, seen = small_of(folder), list[str]()
        what = make(small, rng)

        def read() -> None:
            seen.append(content(small.out, None))

        def read_copy() -> None:
            seen.append(content(small.out, folder / "copies"))

        def check(codes: Any) -> str:
            return "" if set(seen) <= {right} else "training reads other content"

        return Hostile(what, ("cache.zarr", "there", "copies"), _commands(small, (read, read_copy)), check)

    return of


def _forged(make: Callable[[Small, np.random.Generator], str]) -> Callable[[Path, np.random.Generator], Hostile]:
    """Return a kind with valid checksums, whose content may be anything but must not lead outside."""

    def of(folder: Path, rng: np.random.Generator) -> Hostile:
        small = small_of(folder)
        what = make(small, rng)

        def read() -> None:
            content(small.out, None)

        def read_copy() -> None:
            content(small.out, folder / "copies")

        return Hostile(what, ("cache.zarr", "there", "copies"), _commands(small, (read, read_copy)))

    return of


def _files(small: Small, pattern: str = "*") -> list[Path]:
    return sorted(path for path in small.out.rglob(pattern) if path.is_file() and path.name != "lock")


def _outside(small: Small) -> Path:
    return small.folder.parent / "outside"


def _damage_document(small: Small, rng: np.random.Generator) -> str:
    files = _files(small, "*.json")
    file = files[rng.integers(len(files))]
    before, line, rest = b"", b"", file.read_bytes()
    if rest[:1] != b"{":
        before, line, rest = rest.partition(b"\n")
    document = json.loads(rest)
    what = edit(document, rng, _outside(small))
    file.write_bytes(before + line + canonical(document))
    return f"{file.relative_to(small.out)}: {what}"


def _damage_file(small: Small, rng: np.random.Generator) -> str:
    files = _files(small)
    file = files[rng.integers(len(files))]
    changed, what = edit_bytes(file.read_bytes(), rng)
    file.write_bytes(changed)
    return f"{file.relative_to(small.out)}: {what}"


def _replace_file(small: Small, rng: np.random.Generator) -> str:
    files = _files(small)
    file = files[rng.integers(len(files))]
    return f"{file.relative_to(small.out)}: {replace(file, rng, _outside(small))}"


def _sign_commit(small: Small, rng: np.random.Generator) -> str:
    """Write an edited commit with valid checksums, and make it the current one everywhere."""
    root = json.loads((small.out / "zarr.json").read_bytes())
    head = root["attributes"]["commit"]
    commit = json.loads((small.out / "commits" / f"{head}.json").read_bytes())
    private = json.loads((small.out / ".pipeline" / "private" / f"{head}.json").read_bytes())
    both = {"public": {"attributes": commit["attributes"], "arrays": commit["arrays"]}, "private": private}
    what = edit(both, rng, _outside(small))
    public, private = both.get("public"), both.get("private")
    commit = public if isinstance(public, dict) else {"attributes": public}
    commit["private"] = hashlib.sha256(canonical(private)).hexdigest()
    attributes = commit.get("attributes")
    name = sign(commit) if isinstance(attributes, dict) else head
    (small.out / "commits" / f"{name}.json").write_bytes(canonical(commit))
    (small.out / ".pipeline" / "private" / f"{name}.json").write_bytes(canonical(private))
    record = {"cache": "0" * 32, "commit": name, "sequence": 9}
    (small.out / ".pipeline" / "head").write_bytes(with_checksum(canonical(record)))
    root["attributes"] = attributes
    nodes = commit.get("arrays")
    if isinstance(nodes, dict):
        root["consolidated_metadata"]["metadata"] |= nodes
    (small.out / "zarr.json").write_bytes(canonical(root))
    return f"a commit with {what}"


def _checksum_record(small: Small, rng: np.random.Generator) -> str:
    """Edit the record of a shard, with a valid checksum."""
    files = sorted(small.out.glob(".pipeline/shards/*.json"))
    file = files[rng.integers(len(files))]
    document = json.loads(file.read_bytes().partition(b"\n")[2])
    what = edit(document, rng, _outside(small))
    file.write_bytes(with_checksum(canonical(document)))
    return f"{file.name}: {what}"


def sign(commit: dict[str, Any]) -> str:
    """Set the id of a commit according to its content, as in docs/cache_format.md, and return it."""
    unnamed = {key: value for key, value in commit["attributes"].items() if key != "commit"}
    digest = hashlib.sha256(canonical([unnamed, commit.get("arrays"), commit["private"]])).hexdigest()
    commit["attributes"]["commit"] = digest[:16]
    return digest[:16]

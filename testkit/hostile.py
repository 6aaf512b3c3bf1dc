"""Make hostile inputs of valid ones by seeded edits, and run commands on them: for a test and a campaign.

A kind is a function that puts a hostile input into a folder and gives the commands to try on it; `KINDS` has them all.
"""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from pipeline.cache.files import canonical, with_checksum
from pipeline.cli.main import main
from testkit.small import Small, write, write_slices

MOST_S, MOST_BYTES = 10, 100_000
TEXTS = (
    "",
    "../x",
    "../../x/y",
    "/tmp/x",
    "tables/../../x.csv",
    "images/8-../x",
    "\0",
    "\ud800",
    "a" * 100_000,
    "\x1b]0;x\a",
)
NUMBERS = (-1, 0, 1, 2**31, 2**63, 10**30, 1e308, 0.1, float("inf"), float("nan"))
OTHERS: tuple[Any, ...] = (None, True, [], {}, [[]] * 1000, {"a": {"a": {"a": 1}}})


@dataclass
class Tried:
    """What came of a campaign: how many inputs, and what was wrong with which."""

    inputs: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def tree(folder: Path, but: Path) -> dict[str, bytes]:
    """Every file below a folder, except for what lies in `but`."""
    files = (path for path in folder.rglob("*") if path.is_file() and but not in path.parents)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def attempt(command: Sequence[object]) -> tuple[int, list[str]]:
    """Run a command; its exit code, and what no hostile input may bring about."""
    wrong = []
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(MOST_S)
    try:
        result = CliRunner().invoke(main, [str(word) for word in command])
    finally:
        signal.alarm(0)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        wrong.append(f"{command[0]}: {type(result.exception).__name__}: {str(result.exception)[:200]}")
    if len(result.output) > MOST_BYTES:
        wrong.append(f"{command[0]}: says {len(result.output):,} characters")
    return result.exit_code, wrong


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"hangs for {MOST_S} s")


# --- edits ---------------------------------------------------------------------------------------------------------


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON document."""
    found = [path] if path else []
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inside:
        found += places(value, (*path, key))
    return found


def edit(document: Any, rng: np.random.Generator) -> str:
    """Change one value: its text, its number, its type, or the structure around it; says what was done."""
    ways = places(document)
    *way, last = ways[rng.integers(len(ways))]
    inside = document
    for key in way:
        inside = inside[key]
    choices = (TEXTS, NUMBERS, OTHERS)[rng.integers(3)]
    value = choices[rng.integers(len(choices))]
    if rng.random() < 0.1 and isinstance(inside, dict):
        inside[f"{last}x"] = inside.pop(last)
        return f"{'.'.join(map(str, way))}.{last} renamed"
    inside[last] = value
    return f"{'.'.join(map(str, (*way, last)))} = {str(value)[:40]!r}"


# --- kinds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hostile:
    """One hostile input.

    Attributes:
        what: was done to the valid one.
        folder: the only one that commands may write to.
        commands: to be tried on it, in this order.
        kept: says what an accepted input has changed that it must not, "" where nothing.
    """

    what: str
    folder: Path
    commands: tuple[tuple[object, ...], ...]
    kept: Callable[[], str] = lambda: ""


def valid_cache(folder: Path) -> Small:
    """A small cache of two commits, which the edits begin with."""
    folder.mkdir()
    small = Small(folder, rows=4, labels={f"1.2.3.0.{n}": n % 2 for n in range(9)})
    write_slices(small.src, range(5))
    small.build()
    write(small.src / "notes.txt", b"not DICOM")
    small.build()
    return small


def _commands(small: Small) -> tuple[tuple[object, ...], ...]:
    out = small.out
    look = (("info", out), ("info", out, "--digest"), ("why", out, "000.dcm"), ("plan", *small.options()))
    work = (("verify", out), ("gc", out, "--yes"), ("verify", out, "--repair", "--src", small.src))
    return (*look, *work, ("build", *small.options(), "--workers", 0), ("publish", out, f"file://{out / 'published'}"))


def damaged_document(small: Small, rng: np.random.Generator) -> Hostile:
    """One value of one JSON document is another, and no checksum is made anew."""
    digest = small.digest()
    files = sorted(path for path in small.out.rglob("*.json") if path.name != "pending.json")
    file = files[rng.integers(len(files))]
    content = file.read_bytes()
    before, _, rest = content.partition(b"\n") if content[:1] != b"{" else (b"", b"", content)
    document = json.loads(rest)
    what = edit(document, rng)
    file.write_bytes(before + b"\n" * bool(before) + _text(document))
    name = file.relative_to(small.out)

    def kept() -> str:
        return "" if small.digest() == digest else "the content has changed"

    return Hostile(f"{name}: {what}", small.out, _commands(small), kept)


def signed_commit(small: Small, rng: np.random.Generator) -> Hostile:
    """A stranger's commit with checksums that are right, and lies in it; the current one by every record."""
    root = json.loads((small.out / "zarr.json").read_bytes())
    head = root["attributes"]["commit"]
    commit = json.loads((small.out / "commits" / f"{head}.json").read_bytes())
    private = json.loads((small.out / ".pipeline" / "private" / f"{head}.json").read_bytes())
    both = {"public": {"attributes": commit["attributes"], "arrays": commit["arrays"]}, "private": private}
    what = edit(both, rng)
    public, private = both.get("public"), both.get("private")
    commit = public if isinstance(public, dict) else {"attributes": public}
    commit["private"] = hashlib.sha256(_text(private)).hexdigest()
    attributes = commit.get("attributes")
    name = _sign(commit) if isinstance(attributes, dict) else head
    (small.out / "commits" / f"{name}.json").write_bytes(_text(commit))
    (small.out / ".pipeline" / "private" / f"{name}.json").write_bytes(_text(private))
    record = {"cache": "0" * 32, "commit": name, "sequence": 9}
    (small.out / ".pipeline" / "head").write_bytes(with_checksum(canonical(record)))
    root["attributes"] = attributes
    (small.out / "zarr.json").write_bytes(_text(root))
    return Hostile(f"a commit with {what}", small.out, _commands(small))


def forged_private(small: Small, rng: np.random.Generator) -> Hostile:
    """A done-record with a checksum that is right, and lies in it."""
    files = sorted(small.out.glob(".pipeline/shards/*.json"))
    file = files[rng.integers(len(files))]
    document = json.loads(file.read_bytes().partition(b"\n")[2])
    what = edit(document, rng)
    file.write_bytes(with_checksum(_text(document)))
    return Hostile(f"{file.name}: {what}", small.out, _commands(small))


def _sign(commit: dict[str, Any]) -> str:
    unnamed = {key: value for key, value in commit["attributes"].items() if key != "commit"}
    digest = hashlib.sha256(_text([unnamed, commit.get("arrays"), commit["private"]])).hexdigest()
    commit["attributes"]["commit"] = digest[:16]
    return digest[:16]


def _text(document: Any) -> bytes:
    return canonical(document)


Kind = Callable[[Small, np.random.Generator], Hostile]
KINDS: dict[str, Kind] = {
    "a damaged document": damaged_document,
    "a signed commit": signed_commit,
    "a sealed record": forged_private,
}


def attack(kind: Kind, valid: Small, folder: Path, rng: np.random.Generator, tried: Tried) -> None:
    """Try one hostile input, made of a copy of a valid one below an empty folder."""
    shutil.copytree(valid.folder, folder / "copy")
    small = Small(folder / "copy", rows=valid.rows, labels=valid.labels)
    small.options()
    hostile = kind(small, rng)
    around = tree(folder, hostile.folder)
    codes = []
    for command in hostile.commands:
        try:
            code, wrong = attempt(command)
        except TimeoutError as error:
            code, wrong = 1, [f"{command[0]}: {error}"]
        codes.append(code)
        tried.wrong += [f"{hostile.what}: {one}" for one in wrong]
    if tree(folder, hostile.folder) != around:
        tried.wrong.append(f"{hostile.what}: wrote outside")
    if not any(codes[:-1]) and (changed := hostile.kept()):
        tried.wrong.append(f"{hostile.what}: accepted, {changed}")
    tried.inputs += 1
    tried.refused += any(codes)
    shutil.rmtree(folder / "copy")

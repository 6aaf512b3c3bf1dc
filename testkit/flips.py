"""Flip a bit of a cache or a run, and check that a command that reads the file reports it, or works as if undamaged.

The commands that read a file are found by recording the files that each command opens. The result of a command is its
output and the content of the folder, except for the flipped file and the digests of a run.
"""

import functools
import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.cli.main import main as pipeline
from testkit.fake_cache import write_cache
from testkit.hostile import caches, runs
from testkit.hostile.edits import flip_bit
from testkit.hostile.engine import Command, call
from training.cli.main import main as train
from training.run.digests import FILE


@dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        code: exit code.
        output: lines of its output.
        files: path below the folder -> SHA-256.
        error: repr of an exception that was not handled, or "".
    """

    code: int
    output: tuple[str, ...]
    files: Mapping[str, str]
    error: str = ""


@dataclass
class Scene:
    """A folder, commands that use it, and the files that each reads and its result without damage.

    Attributes:
        folder: the folder.
        parts: folders below it in whose files bits are flipped.
        commands: name -> program and command.
        results: name -> result.
        readers: file below the folder -> names of the commands that open it.
    """

    folder: Path
    parts: tuple[str, ...]
    commands: Mapping[str, tuple[click.Command, Command]]
    results: dict[str, Result] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def pristine(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.pristine")

    @property
    def files(self) -> list[str]:
        """The files of its parts that are not empty."""
        found = (path for part in self.parts for path in (self.pristine / part).rglob("*"))
        return sorted(str(path.relative_to(self.pristine)) for path in found if path.is_file() and path.stat().st_size)

    def renew(self) -> None:
        """Restore the folder to its initial state."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.pristine, self.folder, symlinks=True)

    def do(self, name: str, opened: set[str] | None = None) -> Result:
        """Run a command on the current folder; add the files below it that the command opens to `opened`."""
        if opened is not None:
            _watch(self.folder, opened)
        code, output, error = call(*self.commands[name])
        _watch(None, set())
        found = {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file()
        }
        crash = "" if error is None or isinstance(error, SystemExit) else repr(error)[:300]
        return Result(code, tuple(output.splitlines()), found, crash)


def open_scene(folder: Path, parts: tuple[str, ...], commands: Mapping[str, tuple[click.Command, Command]]) -> Scene:
    """Run each command twice; output and files that differ between the two, such as times, will not be compared."""
    scene = Scene(folder, parts, commands)
    folder.rename(scene.pristine)
    first: dict[str, Result] = {}
    for name in commands:
        scene.renew()
        with_files: set[str] = set()
        first[name] = scene.do(name, with_files)
        assert not first[name].error, f"{name}: {first[name].error}"
        for file in scene.files:
            if file in with_files:
                scene.readers.setdefault(file, []).append(name)
    time.sleep(1.1)  # so that times differ
    for name, once in first.items():
        scene.renew()
        again = scene.do(name)
        lines = tuple(line for line in once.output if line in again.output)
        scene.results[name] = Result(once.code, lines, dict(once.files.items() & again.files.items()))
    return scene


_watched: list[Any] = [None, set()]


@functools.cache
def _hook() -> None:
    """Record opened files below the watched folder, with one hook as Python cannot remove audit hooks."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        folder, found = _watched
        if event == "open" and folder is not None and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(f"{folder}/"):
                found.add(path[len(str(folder)) + 1 :])

    sys.addaudithook(note)


def _watch(folder: Path | None, found: set[str]) -> None:
    _hook()
    _watched[:] = [folder, found]


@dataclass
class Outcomes:
    """The outcomes of flips.

    Attributes:
        reported: number of flips that each command reported.
        unchanged: number of flips that changed nothing, by command.
        kinds: number of flips by kind of file.
        wrong: descriptions of flips that were neither.
    """

    reported: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def flip(scene: Scene, rng: np.random.Generator, outcomes: Outcomes) -> None:
    """Flip a random bit of a file that some command reads, and run one of these commands."""
    file = sorted(scene.readers)[rng.integers(len(scene.readers))]
    name = scene.readers[file][rng.integers(len(scene.readers[file]))]
    scene.renew()
    bit = flip_bit(scene.folder / file, rng)
    result, expected = scene.do(name), scene.results[name]
    outcomes.kinds[_kind_of(file)] += 1
    new = [line for line in result.output if line not in expected.output]
    if result.error:
        outcomes.wrong.append(f"{file}, bit {bit}: {name}: {result.error}")
    elif any(_has_path(line, file) for line in new):
        outcomes.reported[name] += 1
    elif not (difference := _difference(result, expected, file)):
        outcomes.unchanged[name] += 1
    else:
        outcomes.wrong.append(f"{file}, bit {bit}: {name}: exit code {result.code}, {difference}")


def _has_path(line: str, file: str) -> bool:
    """Return whether a line contains the path of a file, or of the store of features that it is part of."""
    inside = file.partition("/")[2] or file
    if ".zarr/" in inside:
        inside = f"{inside.partition('.zarr/')[0]}.zarr"
    return inside in line


def _kind_of(file: str) -> str:
    """Return the kind of a file, for counting: its folders and its suffix."""
    return "/".join(part for part in Path(file).parent.parts[:3] if "-" not in part) + f"/*{Path(file).suffix}"


def _difference(result: Result, expected: Result, file: str) -> str:
    if result.code != expected.code:
        return f"prints {result.output[-1:]}"
    for name, digest in expected.files.items():
        if name != file and Path(name).name != FILE and result.files.get(name) != digest:
            return f"{name} differs"
    missing = [line for line in expected.output if line not in result.output]
    return f"does not print {missing[0]!r}" if missing else ""


def cache_scene(folder: Path, names: Sequence[str] = ()) -> Scene:
    """Return a cache built by `pipeline`, and commands of both packages; only those in `names` if there are any."""
    folder.mkdir()
    small = caches.valid_cache(folder / "case")
    out = small.out

    def read() -> None:
        (small.folder / "content").write_text(caches.content(out, None))

    def read_copy() -> None:
        (small.folder / "content").write_text(caches.content(out, small.folder / "copies"))

    words: dict[str, Command] = {
        "verify": ("verify", out),
        "repair": ("verify", out, "--repair", "--src", small.src),
        "info": ("info", out),
        "info --digest": ("info", out, "--digest"),
        "why": ("why", out, "000.dcm"),
        "plan": ("plan", *small.options()),
        "build": ("build", *small.options(), "--workers", 0),
        "gc": ("gc", out),
        "publish": ("publish", out, (small.folder / "there").as_uri()),
        "report": ("report", out, "--out", small.folder / "report.html"),
        "read": read,
        "read a copy": read_copy,
    }
    chosen = {name: (pipeline, words[name]) for name in names or words}
    return open_scene(small.folder, (out.name,), chosen)


def run_scene(folder: Path, names: Sequence[str] = ()) -> Scene:
    """Return a run with features and a head, and commands of `train`; only those in `names` if there are any."""
    folder.mkdir()
    case = folder / "case"
    runs.valid_run(case)
    other = write_cache(case / "other.zarr", patients=2, slices=3, seed=4).path
    run, head, cpu = case / "run", case / "head", runs.CPU
    small: Command = ("--epochs", 1, "--set", "head_features=8", "--set", "batch_size=3")
    made: dict[str, Command] = {
        "series": ("series", "--run", run, "--out", head, *small, *cpu),
        "evaluate": ("evaluate", "--run", run, "--split", "validation", *cpu),
        "evaluate head": ("evaluate", "--run", head, "--split", "validation", *cpu),
    }
    for command in made.values():
        code, output, _ = call(train, command)
        assert code == 0, output
    words: dict[str, Command] = {
        "evaluate": ("evaluate", "--run", run, *cpu),
        "evaluate validation": ("evaluate", "--run", run, "--split", "validation", *cpu),
        "evaluate head": ("evaluate", "--run", head, *cpu),
        "predict": ("predict", "--run", run, "--cache", case / "c.zarr", "--out", case / "p.csv", *cpu),
        "predict head": ("predict", "--run", head, "--cache", case / "c.zarr", "--out", case / "p.csv", *cpu),
        "predict head elsewhere": ("predict", "--run", head, "--cache", other, "--out", case / "p.csv", *cpu),
        "report": ("report", "--run", run),
        "report head": ("report", "--run", head),
        "compare": ("compare", run, head),
        "resume": ("run", "--resume", run, *cpu),
        "resume head": ("series", "--resume", head, *cpu),
        "series": ("series", "--run", run, "--out", case / "another", *small, *cpu),
        "features": ("features", "--run", run, *cpu),
    }
    chosen = {name: (train, words[name]) for name in names or words}
    return open_scene(case, ("run", "head", "c.zarr"), chosen)


SCENES: dict[str, Callable[..., Scene]] = {"cache": cache_scene, "run": run_scene}

"""Try commands on hostile inputs: none may write outside, end in a traceback, hang, flood, or be believed.

A kind is a function that makes a hostile input in a folder and says what to try on it; the other files have them.
"""

import contextlib
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from pipeline.errors import PipelineError
from training.errors import TrainingError

# A command hangs that computes for so long, or waits; other programs may make it wait a while.
MOST_S, MOST_WAIT_S = 10, 120
MOST_CHARACTERS = 100_000
MOST_BYTES = 6 << 30  # of memory: a number in an input may ask for more than the machine has

Command = Sequence[object] | Callable[[], object]  # words of a command line, or a function that reads as a user's may


@dataclass
class Tried:
    """What came of a campaign: how many inputs, how many refused, and what was wrong with which.

    Attributes:
        commands: so many of each input's are tried, chosen at random; all where there are no more.
    """

    commands: int = 1000
    inputs: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Hostile:
    """One hostile input.

    Attributes:
        what: was done to the valid one.
        given: the folders that commands may write to, relative to the case's.
        commands: to be tried on it, in this order.
        lie: says what was believed that it must not, "" where nothing; called with the exit codes.
    """

    what: str
    given: tuple[str, ...]
    commands: tuple[Command, ...]
    lie: Callable[[Sequence[int]], str] = lambda codes: ""


@dataclass(frozen=True)
class Kind:
    """How hostile inputs of one kind are made.

    Attributes:
        program: whose commands are tried.
        valid: the folder that holds the valid input; a copy of it is edited.
        make: edits the copy by random numbers.
    """

    program: click.Command
    valid: Path
    make: Callable[[Path, np.random.Generator], Hostile]


def attack(kind: Kind, around: Path, rng: np.random.Generator, tried: Tried) -> None:
    """Try one hostile input in a folder of its own below `around`, which is gone afterwards."""
    around.mkdir(parents=True)
    (around / "outside").mkdir()
    shutil.copytree(kind.valid, around / "case", symlinks=True)
    hostile = kind.make(around / "case", rng)
    given = tuple(around / "case" / folder for folder in hostile.given)
    before = snapshot(around, given)
    codes = []
    chosen = rng.permutation(len(hostile.commands))[: tried.commands]
    for command in (hostile.commands[place] for place in sorted(chosen)):
        code, wrong = attempt(kind.program, command)
        codes.append(code)
        name = getattr(command, "__name__", "") or command[0]  # type: ignore[index]
        tried.wrong += [f"{hostile.what}: {name}: {one}" for one in wrong]
    after = snapshot(around, given)
    if changed := sorted(before.items() ^ after.items()):
        tried.wrong.append(f"{hostile.what}: wrote outside: {changed[0][0]}")
    if lie := hostile.lie(codes):
        tried.wrong.append(f"{hostile.what}: believed: {lie}")
    tried.inputs += 1
    tried.refused += any(codes)
    shutil.rmtree(around)


def attempt(program: click.Command, command: Command) -> tuple[int, list[str]]:
    """Run a command; its exit code, and what no hostile input may bring about."""
    wrong = []
    try:
        with _limited():
            code, said, error = call(program, command)
    except TimeoutError as hang:
        code, said, error = 1, "", hang
    if error is not None and not isinstance(error, SystemExit):
        wrong.append(f"{type(error).__name__}: {str(error)[:200]!r}")
    if len(said) > MOST_CHARACTERS:
        wrong.append(f"says {len(said):,} characters")
    if code == 1 and not wrong and not said.strip():
        wrong.append("refused without a word")
    return code, wrong


def call(program: click.Command, command: Command) -> tuple[int, str, BaseException | None]:
    """Run a command in this process; its exit code, what it says, and the exception that ended it."""
    if not callable(command):
        result = CliRunner().invoke(program, [str(word) for word in command])
        return result.exit_code, result.output, result.exception
    try:
        command()
    except (PipelineError, TrainingError) as error:
        return 1, f"error: {error}", None
    except Exception as error:
        return 1, "", error
    return 0, "", None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise a TimeoutError where a block hangs, and have it get no more memory than a machine can spare."""
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, MOST_S), (signal.SIGALRM, signal.ITIMER_REAL, MOST_WAIT_S))
    before = [signal.signal(number, _too_long) for number, *_ in timers]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, hard))
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _too_long(*_: Any) -> None:
    raise TimeoutError("hangs")


def snapshot(folder: Path, but: Sequence[Path]) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder, except for what lies in those of `but`: its kind, and its content or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not any(path == given or given in path.parents for given in but):
            mode = path.lstat().st_mode
            content = path.read_bytes() if stat.S_ISREG(mode) else bytes(path.readlink()) if path.is_symlink() else b""
            found[str(path.relative_to(folder))] = stat.S_IFMT(mode), content
    return found

"""Run commands on hostile inputs: none may write outside, crash, hang, print too much, or accept false content.

The kinds of hostile inputs are in the other modules.
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

# A command hangs if it takes more CPU time, or more time in all, than this; other processes may slow it down.
MOST_S, MOST_WAIT_S = 10, 120
MOST_CHARACTERS = 100_000
MOST_BYTES = 6 << 30  # of memory, as a number in an input may request more than the machine has

Command = Sequence[object] | Callable[[], object]  # arguments of a command line, or a function


@dataclass
class Campaign:
    """The results of several hostile inputs.

    Attributes:
        commands: number of commands to run on each input, chosen at random.
        inputs: number of inputs.
        refused: number of inputs for which a command failed.
        wrong: descriptions of violations.
    """

    commands: int = 1000
    inputs: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Hostile:
    """One hostile input.

    Attributes:
        what: description of the edit.
        writable: folders that commands may write to, relative to that of the input.
        commands: to run on it, in this order.
        check: given the exit codes, returns which false content was accepted, or "".
    """

    what: str
    writable: tuple[str, ...]
    commands: tuple[Command, ...]
    check: Callable[[Sequence[int]], str] = lambda codes: ""


@dataclass(frozen=True)
class Kind:
    """A kind of hostile inputs.

    Attributes:
        program: whose commands are run.
        valid: folder of the valid input.
        make: edits a copy of it at random.
    """

    program: click.Command
    valid: Path
    make: Callable[[Path, np.random.Generator], Hostile]


def attack(kind: Kind, around: Path, rng: np.random.Generator, campaign: Campaign) -> None:
    """Run commands on one hostile input in the new folder `around`, which is removed afterwards."""
    around.mkdir(parents=True)
    (around / "outside").mkdir()
    shutil.copytree(kind.valid, around / "case", symlinks=True)
    hostile = kind.make(around / "case", rng)
    writable = tuple(around / "case" / folder for folder in hostile.writable)
    before = snapshot(around, writable)
    codes = []
    chosen = rng.permutation(len(hostile.commands))[: campaign.commands]
    for command in (hostile.commands[place] for place in sorted(chosen)):
        code, wrong = attempt(kind.program, command)
        codes.append(code)
        name = getattr(command, "__name__", "") or command[0]  # type: ignore[index]
        campaign.wrong += [f"{hostile.what}: {name}: {violation}" for violation in wrong]
    after = snapshot(around, writable)
    if changed := sorted(before.items() ^ after.items()):
        campaign.wrong.append(f"{hostile.what}: wrote outside: {changed[0][0]}")
    if accepted := hostile.check(codes):
        campaign.wrong.append(f"{hostile.what}: accepted: {accepted}")
    campaign.inputs += 1
    campaign.refused += any(codes)
    shutil.rmtree(around)


def attempt(program: click.Command, command: Command) -> tuple[int, list[str]]:
    """Run a command; return its exit code and violations."""
    wrong = []
    try:
        with _limited():
            code, said, error = call(program, command)
    except TimeoutError as hang:
        code, said, error = 1, "", hang
    if error is not None and not isinstance(error, SystemExit):
        wrong.append(f"{type(error).__name__}: {str(error)[:200]!r}")
    if len(said) > MOST_CHARACTERS:
        wrong.append(f"prints {len(said):,} characters")
    if code == 1 and not wrong and not said.strip():
        wrong.append("fails without a message")
    return code, wrong


def call(program: click.Command, command: Command) -> tuple[int, str, BaseException | None]:
    """Run a command in this process; return its exit code, its output, and the exception that ended it."""
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
    """Raise a TimeoutError if a block hangs, and limit its memory."""
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


def snapshot(folder: Path, excluded: Sequence[Path]) -> dict[str, tuple[int, bytes]]:
    """Return the type, and content or target, of everything below a folder except in the excluded folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not any(path == other or other in path.parents for other in excluded):
            mode = path.lstat().st_mode
            content = path.read_bytes() if stat.S_ISREG(mode) else bytes(path.readlink()) if path.is_symlink() else b""
            found[str(path.relative_to(folder))] = stat.S_IFMT(mode), content
    return found

"""Call up a message of `pipeline` that names a way out, and follow it by its own words."""

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testkit.small import Small, run, write_slices

Follow = Callable[[re.Match[str]], Iterable[list[Any]]]
State = Callable[[], AbstractContextManager[Any]]


@dataclass
class Case:
    """A refused command and what its message says to do.

    Attributes:
        command: the refused one.
        advice: a pattern that its message must have.
        follow: does what the advice says, and gives the command or commands that it names, of the match.
        again: whether the refused command must then pass as it was.
        state: what holds while the command is refused, and ends before the advice is followed.
    """

    command: list[Any]
    advice: str
    follow: Follow = lambda _: ()
    again: bool = False
    state: State = contextlib.nullcontext


class Cases(dict[str, Callable[[Small], Case]]):
    """Cases by name, each a function that makes the state of it from three slices that are not built yet."""

    def add(self, make: Callable[[Small], Case]) -> Callable[[Small], Case]:
        self[make.__name__.strip("_").replace("_", " ")] = make
        return make

    def follow(self, name: str, folder: Path) -> None:
        small = Small(folder)
        write_slices(small.src, range(3))
        follow(self[name](small))


def follow(case: Case) -> None:
    """See that a command is refused with its advice, and that what follows the advice passes."""
    with case.state():
        refused = run(*case.command, code=None)
    assert refused.exit_code in (1, 2, 3), refused.output
    advice = re.search(case.advice, refused.stderr)
    assert advice, refused.stderr
    for command in case.follow(advice):
        run(*command)
    if case.again:
        run(*case.command)


def build(small: Small, *more: object, **changes: object) -> list[Any]:
    """A build's words; `changes` are options in place of the usual ones, None takes one away."""
    options = dict(zip(*[iter(small.options())] * 2, strict=True))
    options |= {f"--{name}": value for name, value in changes.items()}
    return ["build", "--workers", 0, *(word for pair in options.items() if pair[1] for word in pair), *more]


def advised(words: str, small: Small) -> list[str]:
    """A command as a message gives it, with the data set of the test in the place that the message leaves open."""
    return shlex.split(words.replace("DICOMS", str(small.src)))[1:]


def again(small: Small, *more: object, **changes: object) -> Follow:
    return lambda _: [build(small, *more, **changes)]


def by_hand(act: Callable[[], object]) -> Follow:
    """Advice that is followed without a command."""

    def follow(_: re.Match[str]) -> list[list[Any]]:
        act()
        return []

    return follow


def built(small: Small) -> Small:
    small.build()
    return small

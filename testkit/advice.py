"""Provoke an error message that gives advice, and follow the advice literally."""

import contextlib
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from click.testing import Result

Follow = Callable[[re.Match[str]], Iterable[list[Any]]]
State = Callable[[], AbstractContextManager[Any]]


@dataclass
class Case:
    """A command that fails, and the advice in its message.

    Attributes:
        command: the command.
        advice: a pattern that its message must match.
        follow: given the match, follows the advice and returns the commands that it names, which must then succeed.
        again: whether the same command must then succeed.
        state: a context in which the command fails; it ends before the advice is followed.
    """

    command: list[Any]
    advice: str
    follow: Follow = lambda _: ()
    again: bool = False
    state: State = contextlib.nullcontext


def follow(case: Case, call: Callable[..., Result]) -> None:
    """Check that a command fails with its advice, and that it or other commands succeed after following the advice.

    Args:
        case: the command and its advice.
        call: runs the program with command-line arguments.
    """
    with case.state():
        refused = call(*case.command)
    assert refused.exit_code in (1, 2, 3, 143), refused.output
    advice = re.search(case.advice, " ".join(refused.stderr.split()))
    assert advice, refused.stderr
    for command in (*case.follow(advice), *([case.command] if case.again else [])):
        passed = call(*command)
        assert passed.exit_code == 0, passed.output


def by_hand(act: Callable[[], object]) -> Follow:
    """Return a `Case.follow` that calls a function and names no commands."""

    def follow(_: re.Match[str]) -> list[list[Any]]:
        act()
        return []

    return follow

"""Call up a message that names a way out, and follow it by its own words."""

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


def follow(case: Case, call: Callable[..., Result]) -> None:
    """See that a command is refused with its advice, and that what follows the advice passes.

    Args:
        call: gives words to the program.
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
    """Advice that is followed without a command."""

    def follow(_: re.Match[str]) -> list[list[Any]]:
        act()
        return []

    return follow

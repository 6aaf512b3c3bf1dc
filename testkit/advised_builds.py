"""Builds that are refused with advice, and the words that follow it."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testkit.advice import Case, Follow, follow
from testkit.small import Small, run, write_slices


class Cases(dict[str, Callable[[Small], Case]]):
    """Cases by name, each a function that makes the state of it from three slices that are not built yet."""

    def add(self, make: Callable[[Small], Case]) -> Callable[[Small], Case]:
        self[make.__name__.strip("_").replace("_", " ")] = make
        return make

    def follow(self, name: str, folder: Path) -> None:
        small = Small(folder)
        write_slices(small.src, range(3))
        follow_build(self[name](small))


def follow_build(case: Case) -> None:
    """As `follow`, of `pipeline`."""
    follow(case, lambda *words: run(*words, code=None))


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


def built(small: Small) -> Small:
    small.build()
    return small

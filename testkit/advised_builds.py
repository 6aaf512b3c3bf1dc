"""Helpers for cases of `testkit.advice` in which `pipeline build` fails."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testkit.advice import Case, Follow, follow
from testkit.small import Small, run, write_slices


class Cases(dict[str, Callable[[Small], Case]]):
    """Cases by name, each a function that prepares the case from a source of three slices without a cache."""

    def add(self, make: Callable[[Small], Case]) -> Callable[[Small], Case]:
        self[make.__name__.strip("_").replace("_", " ")] = make
        return make

    def follow(self, name: str, folder: Path) -> None:
        small = Small(folder)
        write_slices(small.src, range(3))
        follow_build(self[name](small))


def follow_build(case: Case) -> None:
    """Call `follow` with the command `pipeline`."""
    follow(case, lambda *words: run(*words, code=None))


def build(small: Small, *more: object, **changes: object) -> list[Any]:
    """Return the arguments of a build; `changes` replace options, or remove them if None."""
    options = dict(zip(*[iter(small.options())] * 2, strict=True))
    options |= {f"--{name}": value for name, value in changes.items()}
    return ["build", "--workers", 0, *(word for pair in options.items() if pair[1] for word in pair), *more]


def advised(words: str, small: Small) -> list[str]:
    """Return the arguments of a command from a message, with the test's source instead of the placeholder DICOMS."""
    return shlex.split(words.replace("DICOMS", str(small.src)))[1:]


def again(small: Small, *more: object, **changes: object) -> Follow:
    return lambda _: [build(small, *more, **changes)]


def built(small: Small) -> Small:
    small.build()
    return small

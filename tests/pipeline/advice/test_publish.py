"""Messages of `pipeline publish` with advice: tests provoke each of them and follow its advice."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from pipeline.cache.lock import publisher_lock
from pipeline.upkeep.targets import FolderTarget
from testkit.advice import Case, Follow, by_hand
from testkit.advised_builds import Cases, built
from testkit.hostile.edits import flip_bit
from testkit.small import Small, run, slice_bytes, write

CASES = Cases()


def _address(small: Small, name: str = "there") -> str:
    return f"file://{small.folder}/{name}"


@CASES.add
def _another_publisher_of_this_cache(small: Small) -> Case:
    built(small)
    publish = ["publish", small.out, _address(small)]
    advice = "another process is publishing it; wait for it, or stop it"
    return Case(publish, advice, again=True, state=lambda: publisher_lock(small.cache))


@CASES.add
def _another_publisher_at_the_address(small: Small) -> Case:
    built(small)
    publish = ["publish", small.out, _address(small)]
    run(*publish)
    write(small.folder / "there" / "publishing.json", b'{"from": "elsewhere", "since": "yesterday"}')
    return Case(publish, "since yesterday; wait for it, or if it was killed run with (--take-over)", lambda m: [
        [*publish, m[1]]
    ])  # fmt: skip


@contextmanager
def _overtaken(small: Small, name: str, content: bytes) -> Iterator[None]:
    """Let another publisher write a file at the address while this one sends."""
    send = FolderTarget.send

    def send_meanwhile(self: FolderTarget, root: Path, names: list[str]) -> None:
        send(self, root, names)
        write(small.folder / "there" / name, content)

    with patch.object(FolderTarget, "send", send_meanwhile):
        yield


@CASES.add
def _a_publisher_that_was_replaced(small: Small) -> Case:
    built(small)
    publish = ["publish", small.out, _address(small)]
    taken = lambda: _overtaken(small, "publishing.json", b'{"from": "elsewhere"}')  # noqa: E731

    def other_ends() -> None:
        (small.folder / "there" / "publishing.json").unlink()

    advice = "another publisher has taken over; wait for it, then run the command again"
    return Case(publish, advice, by_hand(other_ends), again=True, state=taken)


@CASES.add
def _a_publisher_that_was_overtaken(small: Small) -> Case:
    built(small)
    older = (small.out / "zarr.json").read_bytes()
    publish = ["publish", small.out, _address(small)]
    write(small.src / "new.dcm", slice_bytes(7))
    small.build()
    advice = "another publisher has changed it in the meantime; run the command again"
    return Case(publish, advice, again=True, state=lambda: _overtaken(small, "zarr.json", older))


@CASES.add
def _the_root_of_another_cache_at_the_address(small: Small) -> Case:
    built(small)
    address, other = _address(small), _address(small, "empty")
    run("publish", small.out, address)
    write(small.folder / "there" / "zarr.json", b"{}")
    follow = lambda _: [["publish", small.out, other]]  # noqa: E731
    return Case(["publish", small.out, address], "is not this cache's; give another address", follow)


@CASES.add
def _a_copy_that_diverged(small: Small) -> Case:
    built(small)
    copy, address = small.folder / "copy.zarr", _address(small)
    shutil.copytree(small.out, copy)
    write(small.src / "new.dcm", slice_bytes(7))
    small.build()
    run("publish", small.out, address)
    follow = lambda _: [["publish", small.out, address], ["publish", copy, _address(small, "empty")]]  # noqa: E731
    advice = "publish from the cache that made it, or give another address"
    return Case(["publish", copy, address], advice, follow)


def _repaired(small: Small) -> Follow:
    def follow(found: re.Match[str]) -> list[list[Any]]:
        named = run(*found[1].split()[1:], code=1)
        said = re.search(r"run: pipeline (verify .*)", named.stderr)
        assert said
        return [said[1].replace("DICOMS", str(small.src)).split()]

    return follow


@CASES.add
def _a_missing_shard(small: Small) -> Case:
    built(small)
    next(small.out.glob("images/*/c/0/0/0/0")).unlink()
    publish = ["publish", small.out, _address(small)]
    return Case(publish, "missing; run: (pipeline verify .*)", _repaired(small), again=True)


@CASES.add
def _a_damaged_shard(small: Small) -> Case:
    built(small)
    flip_bit(next(small.out.glob("images/*/c/0/0/0/0")), np.random.default_rng(0))
    publish = ["publish", small.out, _address(small)]
    return Case(publish, "is damaged .*; run: (pipeline verify .*)", _repaired(small), again=True)


@CASES.add
def _an_address_that_fails(small: Small) -> Case:
    built(small)

    def refusing(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    refused = lambda: patch.object(FolderTarget, "send", refusing)  # noqa: E731
    publish = ["publish", small.out, _address(small)]
    return Case(publish, "Permission denied; fix this and run the command again", again=True, state=refused)


@pytest.mark.parametrize("name", CASES)
def test_following_the_advice_succeeds(name: str, tmp_path: Path) -> None:
    CASES.follow(name, tmp_path)

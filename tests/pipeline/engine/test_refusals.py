"""A full or read-only disk is one line of error and leaves no partial file, in a build and in other commands."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from testkit.small import Small, run, slice_bytes, write, write_slices

WORDS = {errno.ENOSPC: "the disk is full", errno.EROFS: "Read-only file system", errno.EDQUOT: "the disk is full"}
PLACES = (
    "images/",
    "sums/",
    "shards/",
    "records/",
    "pending.json",
    "tables/",
    "ledgers/",
    "commits/",
    ".zarr.",
    "head",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A cache of one commit."""
    small = Small(tmp_path_factory.mktemp("original"), rows=4)
    write_slices(small.src, range(5))
    small.build()
    return small


@pytest.fixture
def small(original: Small, tmp_path: Path) -> Small:
    return original.copy(tmp_path / "copy")


def refuse(monkeypatch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Let fsync fail for files whose path contains `place`."""
    fsync = os.fsync

    def refusing(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if place in path and not os.path.isdir(path):
            raise OSError(number, os.strerror(number), path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("place", PLACES)
def test_a_build_that_cannot_write_is_one_line_and_can_be_resumed(small, monkeypatch, place):
    number = (*WORDS,)[PLACES.index(place) % len(WORDS)]
    before, wanted = small.digest(), list((small.out / "commits").iterdir())
    write(small.src / "new.dcm", slice_bytes(7))
    with monkeypatch.context() as context:
        refuse(context, place, number)
        [line] = errors(small.build(code=1).stderr)
    assert WORDS[number] in line
    assert "nothing is lost: fix this and run the same command again" in line
    assert not list(small.out.rglob("*.partial"))
    if place != "head":  # it is written after the commit
        assert small.digest() == before
        assert set(wanted) <= set((small.out / "commits").iterdir())
    small.build()
    small.verify()
    assert small.digest() == small.clean_digest(small.folder / "clean")


def test_no_space_for_the_files_of_workers_is_one_line(small, monkeypatch):
    write(small.src / "new.dcm", slice_bytes(7))

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/pipeline-x")

    with monkeypatch.context() as context:
        context.setattr(tempfile, "TemporaryDirectory", full)
        [line] = errors(run("build", *small.options(), "--workers", 1, code=1).stderr)
    assert "/tmp/pipeline-x: the disk is full" in line
    small.build()


@pytest.mark.parametrize("command", ["repair", "gc", "report", "publish"])
def test_another_command_that_cannot_write_is_one_line(small, monkeypatch, command):
    small.level = 60
    small.build()
    (small.out / "metadata.csv").write_bytes(b"")
    words = {
        "repair": ("verify", small.out, "--repair", "--src", small.src),
        "gc": ("gc", small.out, "--yes", "--older-than", "0s"),
        "report": ("report", small.out, "--out", small.folder / "report.html"),
        "publish": ("publish", small.out, (small.folder / "there").as_uri()),
    }[command]
    opened, refused = os.open, str(small.folder)

    def read_only(path, flags, *mode, **options):
        if str(path).startswith(refused) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *mode, **options)

    with monkeypatch.context() as context:
        context.setattr(os, "open", read_only)
        refuse(context, str(small.folder), errno.EROFS)
        context.setattr(Path, "write_text", lambda self, *text, **how: read_only(self, os.O_WRONLY))
        [line] = errors(run(*words, code=1).stderr)
    assert "Read-only file system" in line
    assert not list(small.folder.rglob("*.partial"))
    run(*words)

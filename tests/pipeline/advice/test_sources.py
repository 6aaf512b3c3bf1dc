"""Messages about the source with advice: tests provoke each of them and follow its advice."""

import errno
import gzip
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pipeline.source.folder import Folder
from testkit.advice import Case, by_hand
from testkit.advised_builds import Cases, again, build, built, follow_build
from testkit.small import Small, slice_bytes, write, write_slices
from testkit.source_files import write_tar, write_zip

CASES = Cases()


def _members(small: Small) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in small.src.iterdir()}


def _old_tar(file: Path, members: dict[str, bytes]) -> None:
    """Write a tar in the format before 1988, without a magic number in the header."""
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            path = file.with_name(name)
            path.write_bytes(content)
            archive.add(path, name)
    data = bytearray(file.read_bytes())
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:155] = b"%06o\0" % sum(data[:512])
    file.write_bytes(data)


def _gzipped_tar(file: Path, members: dict[str, bytes]) -> None:
    file.write_bytes(gzip.compress(Path(write_tar(file, members)).read_bytes()))


def _self_extracting(file: Path, members: dict[str, bytes]) -> None:
    file.write_bytes(b"MZ" + bytes(600) + Path(write_zip(file, members)).read_bytes())


def _spanned(file: Path, members: dict[str, bytes]) -> None:
    file.write_bytes(b"PK\7\x08" + Path(write_zip(file, members)).read_bytes())


def _damaged(file: Path, members: dict[str, bytes]) -> None:
    """Write a zip with impossible lengths in the directory entry of a member."""
    data = bytearray(Path(write_zip(file, members, zipfile.ZIP_STORED)).read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 28 : at + 32] = struct.pack("<2H", 60000, 60000)
    file.write_bytes(data)


KINDS: dict[str, tuple[Callable[[Path, dict[str, bytes]], None], str, str]] = {
    "old tar": (_old_tar, "x.tar", "in the old .* format, which is not supported; unpack it, or repack it as a zip"),
    "gzipped tar": (_gzipped_tar, "x.tar.gz", r"compressed as a whole \(.*\); unpack it, or repack it as a zip"),
    "self-extracting": (
        _self_extracting,
        "x.exe",
        "self-extracting zip, which is not supported; unpack it, or repack it as",
    ),
    "spanned": (_spanned, "x.zip", "spanned zip, which is not supported; join the parts or unpack them"),
    "damaged": (_damaged, "x.zip", "a damaged zip archive"),
    "empty": (lambda file, _: Path(write_zip(file, {})), "x.zip", "no files in it; give an archive of DICOM files"),
}


@pytest.mark.parametrize("way", ["unpacked", "packed as a zip"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unsupported_archive_is_unpacked_or_repacked(kind: str, way: str, small: Small) -> None:
    pack, name, advice = KINDS[kind]
    archive, unpacked = small.folder / name, small.src
    pack(archive, _members(small))
    corrected = unpacked if way == "unpacked" else write_zip(small.folder / "new.zip", _members(small))
    follow_build(Case(build(small, src=archive), advice, again(small, src=corrected)))


@pytest.fixture
def small(tmp_path: Path) -> Small:
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    return small


@CASES.add
def _an_unreadable_folder(small: Small) -> Case:
    write(small.src / "closed" / "s.dcm", slice_bytes(9))
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if os.fspath(path).endswith("closed/"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    moved = by_hand(lambda: shutil.move(small.src / "closed", small.folder / "out"))
    closed = lambda: patch.object(os, "scandir", refusing)  # noqa: E731
    return Case(build(small), "Permission denied; make it readable or move it out", moved, again=True, state=closed)


@CASES.add
def _restoring_missing_files(small: Small) -> Case:
    built(small)
    shutil.move(small.src / "001.dcm", small.folder)
    back = by_hand(lambda: shutil.move(small.folder / "001.dcm", small.src))
    return Case(build(small), "are gone, .* restore them, or run with", back, again=True)


@CASES.add
def _pruning_missing_files(small: Small) -> Case:
    built(small)
    (small.src / "001.dcm").unlink()
    return Case(build(small), "or run with (--prune) to remove", lambda m: [build(small, m[1])])


@CASES.add
def _two_slices_with_the_same_uid(small: Small) -> Case:
    """The slice is rejected, and the message names both files."""
    wrong = small.src / "wrong.dcm"
    write(wrong, slice_bytes(1, content=5))
    few = build(small, "--max-rejects", 0)

    def remove() -> None:
        said = (small.out / "rejects.csv").read_text("utf-8")
        assert "same SOP Instance UID as 001.dcm, but" in said
        assert "remove the wrong one" in said
        wrong.unlink()
        small.build("--prune")

    return Case(few, "more than --max-rejects; see", by_hand(remove), again=True)


def _failing(number: int, message: str) -> Callable[[], Any]:
    """Return a context in which reading any file fails with this error."""

    def read(self: Folder, path: str, *how: Any, **past: Any) -> Any:
        raise OSError(number, message, path)

    return lambda: patch.object(Folder, "read", read)


@CASES.add
def _a_source_that_vanishes_during_the_build(small: Small) -> Case:
    gone = _failing(errno.ESTALE, "Stale file handle")
    return Case(build(small), "is gone .*; restore it and run the command again", again=True, state=gone)


@CASES.add
def _files_that_vanish_during_the_build(small: Small) -> Case:
    gone = _failing(errno.ENOENT, "No such file")
    return Case(build(small), "finished work is kept: run the same command again", again=True, state=gone)


@CASES.add
def _a_file_changed_without_its_size_or_time(small: Small) -> Case:
    """The same command fails again, because only the content shows the change."""
    built(small)
    write(small.src / "001.dcm", slice_bytes(1, content=5))
    small.sizes = (8, 12)
    small.build(code=1)
    advice = "001.dcm: vanished or changed before it was read; .* add --check hash if this repeats"
    return Case(build(small), advice, again(small, "--check", "hash"), again=True)


@CASES.add
def _a_server_that_does_not_answer(small: Small) -> Case:
    class Silent(Exception):
        """An error of a client, without an errno."""

    def read(*_: Any, **__: Any) -> Any:
        raise Silent("503 Slow Down")

    from fsspec.implementations.local import LocalFileSystem

    address = f"file://{small.src}"
    silent = lambda: patch.multiple(LocalFileSystem, cat_file=read, open=read, _open=read)  # noqa: E731
    advice = "finished shards are kept: run the command again when it answers"
    return Case(build(small, src=address), advice, again=True, state=silent)


@CASES.add
def _a_protocol_whose_package_is_missing(small: Small) -> Case:
    def missing(_: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    from testkit.extras import assert_installs

    followed = by_hand(lambda: assert_installs("s3", "s3fs"))
    lacking = lambda: patch("fsspec.core.get_filesystem_class", missing)  # noqa: E731
    return Case(build(small, src="s3://bucket/x"), r"run: pip install 'ich-cache\[s3\]'", followed, state=lacking)


@pytest.mark.parametrize("name", CASES)
def test_following_the_advice_succeeds(name: str, tmp_path: Path) -> None:
    CASES.follow(name, tmp_path)

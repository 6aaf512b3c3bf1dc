"""Sources: folders are listed and read, and files are read ahead."""

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.source import files
from pipeline.source import folder as folder_source
from pipeline.source.files import Buffer
from pipeline.source.folder import Folder
from pipeline.source.reading import FILES_AHEAD, MAX_BYTES_AHEAD, Content, reading
from pipeline.source.remote import Remote
from pipeline.source.sources import open_source
from testkit.source_files import CONTENTS, read_all


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        path = tmp_path / "dicoms" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "dicoms"


# --- folders -------------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_sorted_and_read(folder: Path) -> None:
    assert read_all(str(folder)) == CONTENTS
    listing = open_source(str(folder)).scan()
    assert listing.paths == sorted(CONTENTS)
    assert not listing.ordered
    assert listing.sizes.dtype == listing.mtimes_ns.dtype == np.int64
    assert listing.mtimes_ns[0] == (folder / "a.dcm").stat().st_mtime_ns


def test_hidden_files_and_special_files_are_left_out(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_bytes(b"x")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        (folder / "dangling").symlink_to("nowhere")
        assert read_all(str(folder)) == CONTENTS


def test_links_are_followed_without_looping(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/4").write_bytes(b"four")
    (folder / "b/loop").symlink_to(folder)
    (folder / "a-link").symlink_to(folder / "b")  # already listed under its own name
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "file").symlink_to(folder / "a.dcm")
    assert read_all(str(folder)) == CONTENTS | {"out/4": b"four", "file": b"first"}


def test_names_that_are_not_utf8_are_listed_as_text_and_can_be_read(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/caf\xe9.dcm", "wb") as file:
        file.write(b"latin")
    found = read_all(str(folder))
    (name,) = found.keys() - CONTENTS.keys()
    assert name.encode("utf-8")  # can be written to a table
    assert found[name] == b"latin"


def test_a_folder_that_cannot_be_listed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("/b/c/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"b/c/: Permission denied; make it readable"):
        open_source(str(folder)).scan()


def test_a_missing_source_and_an_empty_one_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file or directory; give a folder") as error:
        open_source(str(tmp_path / "missing"))
    assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match="no files in it"):
        open_source(str(tmp_path)).scan()


def test_a_single_file_is_a_source(folder: Path) -> None:
    assert read_all(str(folder / "a.dcm")) == {"a.dcm": b"first"}


def test_a_vanished_file_differs_from_an_unreadable_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(folder))
    (folder / "a.dcm").unlink()
    with pytest.raises(FileNotFoundError):
        source.read("a.dcm", Buffer())
    os.mkfifo(folder / "a.dcm")
    started = time.monotonic()
    with pytest.raises(OSError, match="not a regular file"):
        source.read("a.dcm", Buffer())
    assert time.monotonic() - started < 5
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    with pytest.raises(OSError, match="larger than"):
        source.read("b/2.dcm", Buffer())


def test_the_stamp_is_that_of_the_content_read(folder: Path) -> None:
    source = open_source(str(folder))
    source.scan()
    (folder / "a.dcm").write_bytes(b"changed")
    os.utime(folder / "a.dcm", ns=(1, 7))
    content, stamp = source.read("a.dcm", Buffer())
    assert (bytes(content), stamp) == (b"changed", (7, 7))


def test_the_buffer_is_reused_and_grows(folder: Path) -> None:
    source, buffer = open_source(str(folder)), Buffer()
    first, _ = source.read("a.dcm", buffer)
    second, _ = source.read("b/2.dcm", buffer)
    assert bytes(first) == bytes(second)[: len(first)]  # the same memory
    (folder / "large").write_bytes(bytes(range(256)) * 8192)
    large, _ = source.read("large", buffer)
    assert bytes(large) == bytes(range(256)) * 8192
    assert not large.readonly


@pytest.mark.parametrize("names", [[], ["a"], [f"{number:02d}" for number in range(30)]])
def test_reading_ahead_returns_every_file_in_any_order(tmp_path: Path, names: list[str]) -> None:
    system = fsspec.filesystem("memory")
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 3)
        system.pipe(f"/ahead/{name}", name.encode() * 3)
    for source in (Folder(str(tmp_path)), Remote("memory://ahead")):
        with reading(source, names) as read:
            assert [bytes(read(name)[0]) for name in names] == [name.encode() * 3 for name in names]
        with reading(source, names) as read:
            assert [bytes(read(name)[0]) for name in names[::-2]] == [name.encode() * 3 for name in names[::-2]]
            with pytest.raises(FileNotFoundError):
                read("missing")


def test_reading_ahead_starts_at_the_first_file_that_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:03d}" for number in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 3)
    preadv, here = os.preadv, threading.get_ident()
    by_threads: list[str] = []

    def recording_preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        if flags & os.RWF_NOWAIT and name == "005":
            raise BlockingIOError
        if threading.get_ident() != here:
            by_threads.append(name)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", recording_preadv)
    with reading(Folder(str(tmp_path)), names) as read:
        for number, name in enumerate(names):
            assert bytes(read(name)[0]) == name.encode() * 3
            assert number > 5 or not by_threads
            assert max(by_threads, default=name) <= f"{number + FILES_AHEAD:03d}"
    assert set(by_threads) == set(names[6:])


def test_a_file_of_any_size_is_read_past_the_page_cache(tmp_path: Path) -> None:
    folder, buffer = Folder(str(tmp_path)), Buffer()
    for size in (0, 1, 511, 4095, 4096, 4097, 600_001, 2_500_000):
        content = np.random.default_rng(size).bytes(size)
        (tmp_path / "a").write_bytes(content)
        memory, stamp = folder.read("a", buffer, past_cache=True)
        assert bytes(memory) == content
        assert stamp.size == size


def test_a_file_system_without_direct_reads_is_read_normally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    (tmp_path / "a").write_bytes(b"content")
    assert bytes(Folder(str(tmp_path)).read("a", Buffer(), past_cache=True)[0]) == b"content"


def test_large_files_wait_for_their_turn_and_missing_files_raise_at_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["0", "1", "large", "lost", "4"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(Folder, "size", lambda source, path: MAX_BYTES_AHEAD + (path == "large"))
    read_file, by_threads, here = folder_source.read_file, list[str](), threading.get_ident()

    def recording_read(file: str, buffer: Buffer, before_waiting: Callable[[], object], *, past_cache: bool) -> Content:
        before_waiting()  # nothing is cached
        if threading.get_ident() != here:
            by_threads.append(Path(file).name)
        return read_file(file, buffer, before_waiting, past_cache=past_cache)

    monkeypatch.setattr(folder_source, "read_file", recording_read)
    (tmp_path / "lost").unlink()
    with reading(Folder(str(tmp_path)), names) as read:
        assert [bytes(read(name)[0]) for name in names[:3]] == [b"0", b"1", b"large"]
        with pytest.raises(FileNotFoundError):
            read("lost")
        assert bytes(read("4")[0]) == b"4"
    assert sorted(by_threads) == ["1", "4", "lost"]


def test_buffers_start_at_a_page_boundary() -> None:
    buffer = Buffer()
    for size in (1, 5_000_000, 20_000_001):
        memory = buffer.view(size)
        assert len(memory) == size
        assert np.frombuffer(memory, np.uint8).ctypes.data % files.PAGE_BYTES == 0

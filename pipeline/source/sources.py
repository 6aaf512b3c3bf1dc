"""This file finds the files of a source and reads them: a folder, one file, an archive, or an address."""

import errno
import os
import stat
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.errors import SourceError
from pipeline.source.archives import archive_kind, list_members, read_member
from pipeline.system import READ_FLAGS, read_at, read_from_memory, read_past_cache

# A file of 4 GB is no slice and no series; reading it would take a worker's memory.
MAX_FILE_BYTES = 4 << 30
PAGE_BYTES = 4096
# What the clients of object stores raise, with other errors of their own, where it is not the file's fault.
_NO_ANSWER = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EBUSY),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH),
}


class Stamp(NamedTuple):
    """What tells that a file is unchanged: size in bytes, modification time in ns since 1970."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source.

    Attributes:
        paths: relative to the source, with "/"; sorted, or in archive order.
        sizes: (files,) int64, bytes.
        mtimes_ns: (files,) int64, ns since 1970.
        ordered: the order is that of an archive, and reading in it is much cheaper than in another.
    """

    paths: list[str]
    sizes: np.ndarray
    mtimes_ns: np.ndarray
    ordered: bool = False


class Buffer:
    """Memory that is read into again and again: a fresh 512 KB array would cost more in page faults than the read."""

    def __init__(self) -> None:
        self._memory = _aligned(1 << 20)

    def view(self, size: int) -> memoryview:
        """Return writable memory of `size` bytes from a page's beginning; it invalidates what was read before."""
        if size > self._memory.size:
            self._memory = _aligned(max(size, 2 * self._memory.size))
        return self._memory.data[:size]


def _aligned(size: int) -> np.ndarray:
    """New memory that begins a page: the system copies there in two thirds of the time, disks write nowhere else."""
    memory = np.empty(size + PAGE_BYTES - 1, np.uint8)
    return memory[-memory.ctypes.data % PAGE_BYTES :][:size]


class Source(Protocol):
    """Where the files are. Sources are small and can be pickled; they hold no open file."""

    def scan(self) -> Listing:
        """List the files.

        Raises:
            SourceError: there is no file, or the source cannot be listed.
        """

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        """Read one file of the listing, whole; the memory is good until the buffer is used again.

        Raises:
            FileNotFoundError: it has vanished.
            OSError: it cannot be read.
        """


def open_source(src: str) -> Source:
    """Tell from a path or an address what kind of source it is.

    Raises:
        SourceError: there is no such path, or it cannot be read.
    """
    if "://" in src:
        return Remote(src.rstrip("/"))
    try:
        if stat.S_ISDIR(os.stat(src).st_mode):
            return Folder(os.path.abspath(src))
        file = os.path.abspath(src)
        kind = archive_kind(file)
    except OSError as error:
        raise SourceError(f"{src}: {error.strerror}; give a folder of DICOM files, an archive or one file") from None
    return Archive(file, kind) if kind else SingleFile(file)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, with all folders below it."""

    root: str

    def scan(self) -> Listing:
        return _listing(self.root, *_walk(self.root))

    def read(
        self,
        path: str,
        buffer: Buffer,
        before_waiting: Callable[[], object] = lambda: None,
        past_cache: bool = False,
    ) -> tuple[memoryview, Stamp]:
        """As `Source.read`.

        Args:
            before_waiting: called if the file has to come from the disk, before it does.
            past_cache: do not look for it in the system's memory, nor leave it there; half the processor's time.
        """
        return _read_file(self._name(path), buffer, before_waiting, past_cache)

    def size(self, path: str) -> int:
        """Bytes of a file; 0 where that cannot be told, and `read` will say why."""
        try:
            return os.stat(self._name(path)).st_size
        except OSError:
            return 0

    def _name(self, path: str) -> str:
        return f"{self.root}/{_opened_name(path)}"


@dataclass(frozen=True, slots=True)
class SingleFile:
    """One DICOM file."""

    file: str

    def scan(self) -> Listing:
        try:
            status = os.stat(self.file)
        except OSError as error:
            raise SourceError(f"{self.file}: {error.strerror}") from None
        return _listing(
            self.file, [os.path.basename(self.file)], array("q", [status.st_size]), array("q", [status.st_mtime_ns])
        )

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        return _read_file(self.file, buffer)


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip or tar file, read in place."""

    file: str
    kind: str

    def scan(self) -> Listing:
        members = dict(list_members(self.file, self.kind))  # of several with one name the last
        if not members:
            raise SourceError(f"{self.file}: no files in it; give an archive of DICOM files")
        sizes = np.fromiter((member.size for member in members.values()), np.int64, len(members))
        times = np.fromiter((member.mtime_ns for member in members.values()), np.int64, len(members))
        return Listing(list(members), sizes, times, ordered=True)

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        content, member = read_member(self.file, self.kind, path)
        return content, Stamp(member.size, member.mtime_ns)


@dataclass(frozen=True, slots=True)
class Remote:
    """A folder behind an address that fsspec knows, such as s3://bucket/study.

    Reading takes two requests a file: one for its size and time, so that a giant is refused before it is fetched and
    a change between the two shows, and one for its content.
    """

    address: str

    def scan(self) -> Listing:
        with _plain_errors(self.address):
            system, root = _open_system(self.address)
            found = system.find(root, detail=True)
        paths, sizes, times = [], array("q"), array("q")
        for name, info in found.items():
            path = name[len(root) :].lstrip("/")
            if path and not any(part.startswith(".") for part in path.split("/")):
                paths.append(path)
                sizes.append(info["size"])
                times.append(_changed_ns(info))
        return _listing(self.address, paths, sizes, times)

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        with _server_errors(self.address):
            system, root = _open_system(self.address)
            name = f"{root}/{_opened_name(path)}"
            system.invalidate_cache(name)
            info = system.info(name)
            _check_size(info["size"])
            # The range keeps s3fs from asking for the size once more, and the content from being larger than checked.
            content = system.cat_file(name, start=0, end=info["size"]) if info["size"] else b""
        return memoryview(content), Stamp(len(content), _changed_ns(info))


# Bytes of a file name that are not UTF-8 reach Python as lone surrogates, which no table can hold. They are listed as
# private-use characters instead, and turned back to open the file.
_LISTED = {0xDC80 + byte: 0xF780 + byte for byte in range(128)}
_OPENED = {listed: surrogate for surrogate, listed in _LISTED.items()}


def listed_name(path: str) -> str:
    """A path from the command line or the file system as a `Listing` has it."""
    return path.translate(_LISTED)


def _opened_name(path: str) -> str:
    """The inverse: a path of a `Listing` as the file system has it."""
    return path if path.isascii() else path.translate(_OPENED)


def _walk(root: str) -> tuple[list[str], "array[int]", "array[int]"]:
    """List the regular files below a folder: paths relative to it, sizes, times.

    Names that begin with a dot are left out: they hold what file managers and version control keep for themselves.
    Links are followed; a folder that was seen is not entered again, so a link that leads back ends there. Real
    folders are seen before linked ones.

    Raises:
        SourceError: a folder cannot be listed.
    """
    paths: list[str] = []
    sizes, times = array("q"), array("q")
    folders, linked, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop()
        try:
            status = os.stat(f"{root}/{folder}")
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{folder}{name}/")
                    elif entry.is_file():
                        try:
                            status = entry.stat()
                        except FileNotFoundError:
                            continue  # deleted since the folder was opened
                        paths.append(folder + name)
                        sizes.append(status.st_size)
                        times.append(status.st_mtime_ns)
                    elif entry.is_dir():
                        linked.append(f"{folder}{name}/")
        except OSError as error:
            raise SourceError(f"{root}/{folder}: {error.strerror}; make it readable or move it out") from None
    return paths, sizes, times


def _listing(src: str, paths: list[str], sizes: "array[int]", times: "array[int]") -> Listing:
    if not paths:
        raise SourceError(f"{src}: no files in it; give a folder of DICOM files, an archive or one file")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return Listing(
        [path if (path := paths[index]).isascii() else listed_name(path) for index in order],
        np.array(sizes, np.int64)[order],
        np.array(times, np.int64)[order],
    )


def _read_file(
    file: str, buffer: Buffer, before_waiting: Callable[[], object] = lambda: None, past_cache: bool = False
) -> tuple[memoryview, Stamp]:
    """Read a regular file whole, with one call if the system has it in memory or reads past its cache."""
    # Without waiting: a named pipe that took the file's place since the scan must not hang the build.
    descriptor = os.open(file, READ_FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        _check_size(status.st_size)
        pages = buffer.view(-(-status.st_size // PAGE_BYTES) * PAGE_BYTES)
        memory = pages[: status.st_size]
        done = read_past_cache(descriptor, pages) if past_cache else read_from_memory(descriptor, memory)
        done = min(done, status.st_size)  # it may have grown
        if done < status.st_size:
            before_waiting()
        while done < status.st_size and (count := read_at(descriptor, memory[done:], done)):
            done += count
    finally:
        os.close(descriptor)
    return memory[:done], Stamp(done, status.st_mtime_ns)


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES >> 30} GB")


@contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    """Turn what fsspec and the packages behind it raise for a wrong address or a refused one into one line."""
    try:
        yield
    except ImportError as error:
        raise SourceError(f"{address}: {error}; for s3:// run: pip install 'ich-cache[s3]'") from None
    except Exception as error:
        raise SourceError(f"{address}: {type(error).__name__}: {error}".splitlines()[0]) from None


@contextmanager
def _server_errors(address: str) -> Iterator[None]:
    """Tell a server that does not answer, by whatever error its client has for that, from a file that cannot be read.

    Raises:
        SourceError: the server does not answer, or has no time.
        OSError: the file cannot be read.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _NO_ANSWER:
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SourceError(
            f"{address}: {what}; finished shards are kept: run the command again when it answers"
        ) from None


def _open_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system, which it keeps open for the process, and the root in it."""
    from fsspec.core import url_to_fs  # only for addresses: a plan of a folder does not wait for it

    return url_to_fs(address)


def _changed_ns(info: Mapping[str, Any]) -> int:
    """Return the time of the last change in ns plus a checksum of the entity tag, if the store has either."""
    changed = next(
        (info[key] for key in ("LastModified", "mtime", "last_modified", "updated", "created") if info.get(key)), 0
    )
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
    return int(seconds * 1e9) + zlib.crc32(str(info.get("ETag", "")).encode())

"""This file finds the files of a source and reads them: a folder, one file, an archive, or an address."""

import errno
import os
import stat
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.errors import SourceError

# A file of 4 GB is no slice and no series; reading it would take a worker's memory.
MAX_FILE_BYTES = 4 << 30


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
        self._memory = np.empty(1 << 20, np.uint8)

    def view(self, size: int) -> memoryview:
        """Return writable memory of `size` bytes, aligned to 16; it invalidates what was read before."""
        if size > self._memory.size:
            self._memory = np.empty(max(size, 2 * self._memory.size), np.uint8)
        return self._memory.data[:size]


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
    path = Path(src)
    if path.is_dir():
        return Folder(str(path))
    if not path.exists():
        raise SourceError(f"{src}: no such file or folder; give a folder of DICOM files, an archive or one file")
    return SingleFile(str(path))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, with all folders below it."""

    root: str

    def scan(self) -> Listing:
        return _listing(self.root, *_walk(self.root))

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        return _read_file(f"{self.root}/{path.translate(_OPENED)}", buffer)


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
            self.file, [Path(self.file).name], array("q", [status.st_size]), array("q", [status.st_mtime_ns])
        )

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        return _read_file(self.file, buffer)


# Bytes of a file name that are not UTF-8 reach Python as lone surrogates, which no table can hold. They are listed as
# private-use characters instead, and turned back to open the file.
_LISTED = {0xDC80 + byte: 0xF780 + byte for byte in range(128)}
_OPENED = {listed: surrogate for surrogate, listed in _LISTED.items()}


def _walk(root: str) -> tuple[list[str], array, array]:
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


def _listing(src: str, paths: list[str], sizes: array, times: array) -> Listing:
    if not paths:
        raise SourceError(f"{src}: no files in it; give a folder of DICOM files, an archive or one file")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return Listing(
        [paths[index].translate(_LISTED) for index in order],
        np.array(sizes, np.int64)[order],
        np.array(times, np.int64)[order],
    )


def _read_file(file: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
    """Read a regular file whole with as few calls as the system allows, usually one."""
    # O_NONBLOCK: a named pipe that took the file's place since the scan must not hang the build.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES >> 30} GB")
        memory, done = buffer.view(status.st_size), 0
        while done < status.st_size and (count := os.readv(descriptor, [memory[done:]])):
            done += count
    finally:
        os.close(descriptor)
    return memory[:done], Stamp(done, status.st_mtime_ns)

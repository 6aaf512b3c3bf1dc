"""Find the files of a source and read them: a folder, one file, an archive, or an address."""

import errno
import os
import stat
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.errors import SourceError
from pipeline.source.archives import archive_kind, gunzip, is_gzipped, list_members, read_member
from pipeline.source.names import listed_name, opened_name
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
    """A folder, with all folders and archives below it; `study.zip/1.dcm` is a member of an archive in it."""

    root: str

    def scan(self) -> Listing:
        loose = _listing(self.root, *_walk(self.root))
        archives = [path for path in loose.paths if _may_be_archive(path)]
        return _with_members(loose, self._members(archives)) if archives else loose

    def _members(self, archives: list[str]) -> dict[str, Listing]:
        """List the archives; one that cannot be listed stays a file, and reading it says why."""
        found = {}
        for path in archives:
            with suppress(SourceError, OSError):
                if kind := archive_kind(self._name(path)):
                    found[path] = Archive(self._name(path), kind).scan()
        return found

    def read(
        self,
        path: str,
        buffer: Buffer,
        before_waiting: Callable[[], object] = lambda: None,
        *,
        past_cache: bool = False,
    ) -> tuple[memoryview, Stamp]:
        """As `Source.read`.

        Args:
            before_waiting: called if the file has to come from the disk, before it does.
            past_cache: do not look for it in the system's memory, nor leave it there; half the processor's time.
        """
        if not _may_be_packed(path):
            return _read_file(self._name(path), buffer, before_waiting, past_cache=past_cache)
        archive, member = self._split(path)
        if member:
            return Archive(self._name(archive), _kind(self._name(archive)) or "zip").read(member, buffer)
        if _may_be_archive(path):
            _refuse_archive(self._name(path), path)
        return _read_packed(self._name(path), buffer)

    def _split(self, path: str) -> tuple[str, str]:
        """Divide a path where it enters an archive: (archive, member), or (path, "")."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            if _may_be_archive(parts[count - 1]):
                archive = "/".join(parts[:count])
                if os.path.isfile(self._name(archive)):
                    return archive, "/".join(parts[count:])
        return path, ""

    def size(self, path: str) -> int:
        """Bytes of a file; 0 where that cannot be told, and `read` will say why."""
        try:
            return os.stat(self._name(path)).st_size
        except OSError:
            return 0

    def _name(self, path: str) -> str:
        return f"{self.root}/{opened_name(path)}"


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
        return _read_packed(self.file, buffer) if is_gzipped(self.file) else _read_file(self.file, buffer)


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
        return Listing(list(map(listed_name, members)), sizes, times, ordered=True)

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        content, member = read_member(self.file, self.kind, opened_name(path))
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
            name = f"{root}/{opened_name(path)}"
            system.invalidate_cache(name)
            info = system.info(name)
            _check_size(info["size"])
            # The range keeps s3fs from asking for the size once more, and the content from being larger than checked.
            content = system.cat_file(name, start=0, end=info["size"]) if info["size"] else b""
        return memoryview(content), Stamp(len(content), _changed_ns(info))


def _may_be_archive(path: str) -> bool:
    return path[-4:].lower() in (".zip", ".tar") or path[-4:].lower() == ".tgz" or path[-7:].lower() == ".tar.gz"


def _may_be_packed(path: str) -> bool:
    """Whether a path is, or leads through, what may be an archive or a file under gzip: of most files, not."""
    name = path.lower()
    return name.endswith((".zip", ".tar", ".tgz", ".gz")) or ".zip/" in name or ".tar/" in name


@lru_cache(maxsize=1024)
def _kind(file: str) -> str | None:
    return archive_kind(file)


def _refuse_archive(file: str, path: str) -> None:
    """Raise the reason why an archive was not listed, as one of that file.

    Raises:
        OSError: it is one, or of a kind that is not read.
    """
    try:
        if kind := archive_kind(file):
            Archive(file, kind).scan()
    except SourceError as error:
        raise OSError(errno.EIO, str(error).replace(f"{file}: ", "")) from None


def _read_packed(file: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
    """Read a file, out of gzip where its name and its first bytes say so."""
    content, stamp = _read_file(file, buffer)
    if is_gzipped(file) and bytes(content[:2]) == b"\x1f\x8b":
        content = memoryview(gunzip(content))
    return content, stamp


def _with_members(loose: Listing, members: Mapping[str, Listing]) -> Listing:
    """Put the members of each archive in its place, in its order."""
    paths: list[str] = []
    sizes, times = [], []
    at = 0
    for index, path in enumerate(loose.paths):
        if path not in members:
            continue
        of_archive = members[path]
        paths += loose.paths[at:index]
        paths += [f"{path}/{name}" for name in of_archive.paths]
        sizes += [loose.sizes[at:index], of_archive.sizes]
        times += [loose.mtimes_ns[at:index], of_archive.mtimes_ns]
        at = index + 1
    paths += loose.paths[at:]
    joined = np.concatenate([*sizes, loose.sizes[at:]]), np.concatenate([*times, loose.mtimes_ns[at:]])
    return Listing(paths, *joined, ordered=bool(members))


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
        [listed_name(paths[index]) for index in order],
        np.array(sizes, np.int64)[order],
        np.array(times, np.int64)[order],
    )


def _read_file(
    file: str, buffer: Buffer, before_waiting: Callable[[], object] = lambda: None, *, past_cache: bool = False
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

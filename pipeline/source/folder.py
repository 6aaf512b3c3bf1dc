"""List and read a folder, including the archives in it, or a single file."""

import errno
import os
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.source.archives import Archive, archive_kind, gunzip, is_gzipped
from pipeline.source.files import Buffer, read_file
from pipeline.source.listing import Listing, Stamp, listing_of, with_members
from pipeline.source.names import opened_name


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder with all folders and archives below it; `study.zip/1.dcm` is a member of an archive in it.

    Attributes:
        root: absolute path of the folder.
        cache_root: resolved path of the cache that is built from it, which no link may lead to; "" for none.
    """

    root: str
    cache_root: str = field(default="", kw_only=True)

    def scan(self) -> Listing:
        loose = listing_of(self.root, *_walk(self.root, self.cache_root))
        archives = [path for path in loose.paths if _may_be_archive(path)]
        return with_members(loose, self._members(archives)) if archives else loose

    def _members(self, archives: list[str]) -> dict[str, Listing]:
        """List the archives. One that cannot be listed remains a file; reading it raises the reason."""
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
        """See `Source.read`.

        Args:
            before_waiting: called before the file is read from the disk, if the page cache does not have it.
            past_cache: read past the page cache, which takes half the CPU time.
        """
        if not _may_be_compressed(path):
            return read_file(self._name(path), buffer, before_waiting, past_cache=past_cache)
        archive, member = self._split(path)
        if member:
            return Archive(self._name(archive), _kind(self._name(archive)) or "zip").read(member, buffer)
        if _may_be_archive(path):
            _refuse_archive(self._name(path), path)
        return _read_decompressed(self._name(path), buffer)

    def _split(self, path: str) -> tuple[str, str]:
        """Split a path into (archive, member); return (path, "") if it is not in an archive."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            if _may_be_archive(parts[count - 1]):
                archive = "/".join(parts[:count])
                if os.path.isfile(self._name(archive)):
                    return archive, "/".join(parts[count:])
        return path, ""

    def size(self, path: str) -> int:
        """Return the size of a file in bytes; 0 if that is unknown, in which case `read` raises the reason."""
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
        return listing_of(
            self.file, [os.path.basename(self.file)], array("q", [status.st_size]), array("q", [status.st_mtime_ns])
        )

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        return _read_decompressed(self.file, buffer) if is_gzipped(self.file) else read_file(self.file, buffer)


def _may_be_archive(path: str) -> bool:
    return path[-4:].lower() in (".zip", ".tar") or path[-4:].lower() == ".tgz" or path[-7:].lower() == ".tar.gz"


def _may_be_compressed(path: str) -> bool:
    """Return whether a path may be that of an archive, a member of one, or a gzip file; a fast test for most files."""
    name = path.lower()
    return name.endswith((".zip", ".tar", ".tgz", ".gz")) or ".zip/" in name or ".tar/" in name


@lru_cache(maxsize=1024)
def _kind(file: str) -> str | None:
    return archive_kind(file)


def _refuse_archive(file: str, path: str) -> None:
    """Raise the reason why an archive could not be listed, as an error of that file.

    Raises:
        OSError: it is a damaged archive, or one of an unsupported kind.
    """
    try:
        if kind := archive_kind(file):
            Archive(file, kind).scan()
    except SourceError as error:
        raise OSError(errno.EIO, str(error).replace(f"{file}: ", "")) from None


def _read_decompressed(file: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
    """Read a file; decompress it if its name and its first bytes are those of a gzip file."""
    content, stamp = read_file(file, buffer)
    if is_gzipped(file) and bytes(content[:2]) == b"\x1f\x8b":
        content = memoryview(gunzip(content))
    return content, stamp


def _refuse_link_to_cache(link: str, cache_root: str) -> None:
    target, cache = Path(link).resolve(), Path(cache_root)
    if cache_root and (target == cache or target in cache.parents or cache in target.parents):
        raise SourceError(
            f"{link[:-1]}: leads to the cache that is built from it; remove the link, or give another --out"
        )


def _walk(root: str, cache_root: str) -> tuple[list[str], "array[int]", "array[int]"]:
    """List the regular files below a folder.

    Names that begin with a dot are left out, as they belong to file managers and version control. Links are followed,
    after all real folders; a folder is entered only once, so that a link to a parent does no harm.

    Returns:
        paths relative to the folder, sizes in bytes, modification times in ns since 1970.

    Raises:
        SourceError: a folder cannot be listed, or a link leads to `cache_root`.
    """
    paths: list[str] = []
    sizes, times = array("q"), array("q")
    folders, linked, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or linked:
        if folders:
            folder = folders.pop()
        else:
            folder = linked.pop()
            _refuse_link_to_cache(f"{root}/{folder}", cache_root)
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

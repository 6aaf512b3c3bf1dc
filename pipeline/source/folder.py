"""List and read a folder with the archives in it, and a single file."""

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
    """A folder, with all folders and archives below it; `study.zip/1.dcm` is a member of an archive in it.

    Attributes:
        apart: a folder, resolved, that no link in it may lead to: the cache that is built of it.
    """

    root: str
    apart: str = field(default="", kw_only=True)

    def scan(self) -> Listing:
        loose = listing_of(self.root, *_walk(self.root, self.apart))
        archives = [path for path in loose.paths if _may_be_archive(path)]
        return with_members(loose, self._members(archives)) if archives else loose

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
            return read_file(self._name(path), buffer, before_waiting, past_cache=past_cache)
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
        return listing_of(
            self.file, [os.path.basename(self.file)], array("q", [status.st_size]), array("q", [status.st_mtime_ns])
        )

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        return _read_packed(self.file, buffer) if is_gzipped(self.file) else read_file(self.file, buffer)


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
    content, stamp = read_file(file, buffer)
    if is_gzipped(file) and bytes(content[:2]) == b"\x1f\x8b":
        content = memoryview(gunzip(content))
    return content, stamp


def _require_apart(link: str, apart: str) -> None:
    led_to, cache = Path(link).resolve(), Path(apart)
    if apart and (led_to == cache or led_to in cache.parents or cache in led_to.parents):
        raise SourceError(
            f"{link[:-1]}: leads to the cache that is built from it; remove the link, or give another --out"
        )


def _walk(root: str, apart: str) -> tuple[list[str], "array[int]", "array[int]"]:
    """List the regular files below a folder: paths relative to it, sizes, times.

    Names that begin with a dot are left out: they hold what file managers and version control keep for themselves.
    Links are followed; a folder that was seen is not entered again, so a link that leads back ends there. Real
    folders are seen before linked ones.

    Raises:
        SourceError: a folder cannot be listed, or a link leads to `apart`.
    """
    paths: list[str] = []
    sizes, times = array("q"), array("q")
    folders, linked, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or linked:
        if folders:
            folder = folders.pop()
        else:
            folder = linked.pop()
            _require_apart(f"{root}/{folder}", apart)
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

"""Find a cache's files anywhere: behind an address or on a slow disk, with copies on local disk."""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from training.data.folder import REPAIR, Folder, checked, tail_of
from training.errors import CacheError
from training.system import locked

REQUESTS = 16  # under way at once: one to a network disk or a bucket takes milliseconds, and there are thousands
RETRY_AFTER_S = (1.0, 4.0)


T = TypeVar("T")


@dataclass(frozen=True)
class Mirror:
    """A cache behind an address or on a slow disk, whose files are copied to local disk when they are first read.

    Threads and processes, of one run or of several, may share the copies. A file is copied whole, by one of them,
    and gets its name when all of it is on the disk: whatever ends a run, the next goes on with the copies that are
    there. None is ever removed.

    Attributes:
        address: of the cache, for fsspec: s3://bucket/cache.zarr say, or a folder.
        copies: a folder on local disk, for the copies of any number of caches.
        cache: identity of the cache; another one at the same address has its own copies.
    """

    address: str
    copies: Path
    cache: str = ""
    _tails: dict[tuple[str, int], bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def way_out(self) -> str:
        """What to do about a damaged copy."""
        return f"remove this file, it is copied again from {self.address}; if it is damaged there, {REPAIR}"

    def origin(self, name: str) -> str:
        """Return what to call a file, by its name in docs/cache_format.md, where the cache itself is to blame."""
        return f"{self.address}/{name}"

    def where(self, name: str) -> Path:
        """Return the copy of a file, which need not be there yet."""
        origin = absolute(self.address)
        folder = f"{Path(origin).name}-{hashlib.sha256((origin + self.cache).encode()).hexdigest()[:8]}"
        return self.copies / folder / checked(name)

    def of_cache(self, cache: str) -> "Mirror":
        """Return the same for a cache whose identity is known now."""
        return replace(self, cache=cache, _tails={})

    def exists(self, name: str) -> bool:
        """Whether the origin has such a file or folder; "" is the cache itself."""
        return self._ask(name, lambda system, path: system.exists(path))

    def names(self, name: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        if not self.exists(name):
            return []
        paths = self._ask(name, lambda system, path: system.ls(path, detail=False, refresh=True))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def read(self, name: str) -> bytes:
        """Return a file's content as the origin has it now.

        Raises:
            CacheError: it is missing, or the origin cannot be reached.
        """
        return self._ask(name, lambda system, path: system.cat_file(path))

    def tail(self, name: str, length: int) -> bytes:
        """Return the last bytes of a file, as the origin had it when first asked; raises as `read`."""
        if (name, length) not in self._tails:
            self._tails[name, length] = self._ask(name, lambda system, path: system.cat_file(path, start=-length))
        return self._tails[name, length]

    def fetch(self, name: str, tail_bytes: int) -> Path:
        """Return the copy of a file, made now where there is none or it is not of the origin's file.

        Args:
            tail_bytes: so many bytes at the file's end tell its content, as a shard's index or a checksum does: they
                differ where a cache was built anew at the same address. 0 for a file named by its content.

        Raises:
            CacheError: the file is missing, the origin cannot be reached, or the copy cannot be written.
        """
        copy, end = self.where(name), self._end(name, tail_bytes)
        if _ends_in(copy, end):
            return copy
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _refuse_links(copy, self.copies)
            with _only_writer(copy.with_name(f".{copy.name}.partial")) as partial:
                if not _ends_in(copy, end):  # another writer may just have brought it
                    self._fetch(name, end, partial)
                    os.replace(partial.name, copy)
        except OSError as error:
            raise CacheError(
                f"{copy}: the copy cannot be written ({error.strerror}); free up space or choose another --local-copy, "
                "and run the same command again: it reuses the copies that are there"
            ) from error
        return copy

    @contextmanager
    def fetching(self, names: Iterable[str], tail_bytes: int) -> Iterator[None]:
        """Bring files in the background while the context lasts, several at a time, in the order given.

        `fetch` waits for a file that is on its way. An error is raised there: it asks again.
        """
        missing = [name for name in names if not _ends_in(self.where(name), self._end(name, tail_bytes))]
        pool = ThreadPoolExecutor(REQUESTS, "mirror")
        try:
            for name in missing:
                pool.submit(self.fetch, name, tail_bytes)
            yield
        finally:
            pool.shutdown(cancel_futures=True)

    def _end(self, name: str, tail_bytes: int) -> bytes:
        return self.tail(name, tail_bytes) if tail_bytes else b""

    def _fetch(self, name: str, end: bytes, partial: BinaryIO) -> None:
        content = self.read(name)
        if not content.endswith(end):
            raise CacheError(f"{self.origin(name)}: has changed since this command began; run it again")
        partial.write(content)
        partial.flush()
        os.fsync(partial.fileno())

    def _ask(self, name: str, question: Callable[[Any, str], T]) -> T:
        """Put a question to the origin, and put it again after a while if the answer is an error."""
        from fsspec.core import url_to_fs  # 0.1 s that a cache in a folder need not wait for

        for wait_s in (*RETRY_AFTER_S, None):
            try:
                # fsspec keeps what it opens, for the process or, where it must, for the thread.
                system, root = url_to_fs(self.address)
                _refuse_pipe(system, f"{root.rstrip('/')}/{name}")
                return question(system, f"{root.rstrip('/')}/{name}".rstrip("/"))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise CacheError(f"{self.origin(name)}: is missing; {REPAIR}") from error
            except Exception as error:  # the packages behind fsspec have errors of their own
                if wait_s is None or isinstance(error, ImportError | ValueError | PermissionError):
                    raise self._unreachable(name, error) from error
                time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, name: str, error: Exception) -> CacheError:
        way_out = "check the address, the network and your access, and run the same command again"
        if isinstance(error, ImportError):
            way_out = "for s3:// run: pip install 'ich-cache[s3]'"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return CacheError(f"{self.origin(name)}: cannot be read ({reason}); {way_out}")


def _refuse_pipe(system: Any, path: str) -> None:
    """Raise a ValueError of what is neither file nor folder of this machine: it would be read for ever."""
    if "file" in system.protocol and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError("it is not a file")


def open_files(address: str, copies: Path | None) -> Folder | Mirror:
    """Return where the files of a cache lie.

    Args:
        address: a folder, or an address that fsspec knows.
        copies: where to keep copies of the files that are read; None reads a folder in place.

    Raises:
        CacheError: an address, and no place for copies.
    """
    if copies is not None:
        return Mirror(address.rstrip("/"), copies)
    if "://" in address:
        raise CacheError(f"{address}: is read through copies on a local disk; say where to keep them: --local-copy DIR")
    return Folder(address)


def absolute(address: str) -> str:
    """Return an address that means the same from every folder."""
    return address if "://" in address else os.path.abspath(address)


def _ends_in(copy: Path, end: bytes) -> bool:
    try:
        return tail_of(copy, len(end)) == end
    except OSError:
        return False


@contextmanager
def _only_writer(partial: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for the one writer, among all threads and processes, that may fill and rename it.

    Whoever comes meanwhile waits. The lock is the file's, so it ends with its writer, even a killed one.
    """
    while True:
        with open(partial, "ab", opener=_open_no_link) as file, locked(file, partial):
            try:
                if _is_at(file, partial):  # the writer before may have renamed or removed it
                    file.truncate(0)
                    yield file
                    return
            finally:
                if _is_at(file, partial):
                    partial.unlink()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _refuse_links(copy: Path, copies: Path) -> None:
    """Raise an OSError where a folder of a copy is a link: what is written there would lie elsewhere."""
    for folder in copy.relative_to(copies).parents[:-1]:
        if (copies / folder).is_symlink():
            raise OSError(errno.ELOOP, f"{copies / folder} is a link")


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

"""Read the files of a cache at a remote address or on a slow disk, through copies on a local disk."""

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

REQUESTS = 16  # in flight at once: each takes milliseconds on a network disk or a bucket, and there are thousands
RETRY_AFTER_S = (1.0, 4.0)


T = TypeVar("T")


@dataclass(frozen=True)
class Mirror:
    """A cache at a remote address or on a slow disk, whose files are copied to a local disk on first use.

    Threads and processes, of one or several runs, may share the copies. Each file is copied in full by one of them and
    renamed into place once it is on disk, so that after an interruption the next run reuses all complete copies.
    Copies are never removed.

    Attributes:
        address: of the cache, in a form that fsspec supports, such as s3://bucket/cache.zarr; or a folder.
        copies: a folder on a local disk, for the copies of any number of caches.
        cache: identity of the cache; a different cache at the same address has separate copies.
    """

    address: str
    copies: Path
    cache: str = ""
    _tails: dict[tuple[str, int], bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def remedy(self) -> str:
        """What to do about a damaged copy."""
        return f"remove this file, to have it copied again from {self.address}; if it is damaged there, {REPAIR}"

    def origin(self, name: str) -> str:
        """Return how to name a file in an error about the cache itself, given its name in docs/cache_format.md."""
        return f"{self.address}/{name}"

    def where(self, name: str) -> Path:
        """Return the path of the copy of a file, which may not exist yet."""
        origin = absolute(self.address)
        folder = f"{Path(origin).name}-{hashlib.sha256((origin + self.cache).encode()).hexdigest()[:8]}"
        return self.copies / folder / checked(name)

    def for_cache(self, cache: str) -> "Mirror":
        """Return a mirror for the cache of this identity."""
        return replace(self, cache=cache, _tails={})

    def exists(self, name: str) -> bool:
        """Return whether the origin has a file or folder; "" is the cache itself."""
        return self._ask(name, lambda system, path: system.exists(path))

    def names(self, name: str) -> list[str]:
        """Return the sorted names in a folder of the origin; an empty list if it does not exist."""
        if not self.exists(name):
            return []
        paths = self._ask(name, lambda system, path: system.ls(path, detail=False, refresh=True))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def read(self, name: str) -> bytes:
        """Return the current content of a file at the origin.

        Raises:
            CacheError: if it is missing, or the origin cannot be reached.
        """
        return self._ask(name, lambda system, path: system.cat_file(path))

    def tail(self, name: str, length: int) -> bytes:
        """Return the last `length` bytes of a file, as they were at the origin on first request; raises as `read`."""
        if (name, length) not in self._tails:
            self._tails[name, length] = self._ask(name, lambda system, path: system.cat_file(path, start=-length))
        return self._tails[name, length]

    def fetch(self, name: str, tail_bytes: int) -> Path:
        """Return the copy of a file, after copying it if there is no copy or it does not match the origin.

        Args:
            tail_bytes: number of bytes at the end of the file that identify its content, such as a shard's index or a
                checksum: they differ if the cache has been rebuilt at the same address. 0 for a file named after its
                content.

        Raises:
            CacheError: if the file is missing, the origin cannot be reached, or the copy cannot be written.
        """
        copy, end = self.where(name), self._end(name, tail_bytes)
        if _ends_in(copy, end):
            return copy
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _refuse_links(copy, self.copies)
            with _only_writer(copy.with_name(f".{copy.name}.partial")) as partial:
                if not _ends_in(copy, end):  # another writer may have just copied it
                    self._fetch(name, end, partial)
                    os.replace(partial.name, copy)
        except OSError as error:
            raise CacheError(
                f"{copy}: the copy cannot be written ({error.strerror}); free up space or choose another --local-copy, "
                "and run the same command again: it reuses existing copies"
            ) from error
        return copy

    @contextmanager
    def fetching(self, names: Iterable[str], tail_bytes: int) -> Iterator[None]:
        """Copy files in the background while the context lasts, several at a time, in the given order.

        `fetch` waits for a file that is being copied. Errors are raised there, since it tries again.
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
        """Send a request to the origin, and repeat it after a pause if it fails."""
        from fsspec.core import url_to_fs  # takes 0.1 s, which a cache in a folder does not need

        for wait_s in (*RETRY_AFTER_S, None):
            try:
                # fsspec caches its file systems, per process or, if necessary, per thread.
                system, root = url_to_fs(self.address)
                _refuse_pipe(system, f"{root.rstrip('/')}/{name}")
                return question(system, f"{root.rstrip('/')}/{name}".rstrip("/"))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise CacheError(f"{self.origin(name)}: is missing; {REPAIR}") from error
            except Exception as error:  # each package behind fsspec has its own errors
                if wait_s is None or isinstance(error, ImportError | ValueError | PermissionError):
                    raise self._unreachable(name, error) from error
                time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, name: str, error: Exception) -> CacheError:
        remedy = "check the address, the network and your access, and run the same command again"
        if isinstance(error, ImportError):
            remedy = "for s3:// run: pip install 'ich-cache[s3]'"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return CacheError(f"{self.origin(name)}: cannot be read ({reason}); {remedy}")


def _refuse_pipe(system: Any, path: str) -> None:
    """Raise a ValueError if a local path is neither a file nor a folder: reading it might never end."""
    if "file" in system.protocol and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError("it is not a file")


def open_files(address: str, copies: Path | None) -> Folder | Mirror:
    """Return access to the files of a cache.

    Args:
        address: a folder, or an address that fsspec supports.
        copies: folder for copies of the files that are read; None to read a folder in place.

    Raises:
        CacheError: if an address is given without a folder for copies.
    """
    if copies is not None:
        return Mirror(address.rstrip("/"), copies)
    if "://" in address:
        raise CacheError(f"{address}: is read through copies on a local disk; give a folder for them: --local-copy DIR")
    return Folder(address)


def absolute(address: str) -> str:
    """Return an address that does not depend on the working directory."""
    return address if "://" in address else os.path.abspath(address)


def _ends_in(copy: Path, end: bytes) -> bool:
    try:
        return tail_of(copy, len(end)) == end
    except OSError:
        return False


@contextmanager
def _only_writer(partial: Path) -> Iterator[BinaryIO]:
    """Open a temporary file exclusively, among all threads and processes, to be filled and renamed.

    Other writers wait. The lock belongs to the open file, so it is released even if its writer is killed.
    """
    while True:
        with open(partial, "ab", opener=_open_no_link) as file, locked(file, partial):
            try:
                if _is_at(file, partial):  # the previous writer may have renamed or removed it
                    file.truncate(0)
                    yield file
                    return
            finally:
                if _is_at(file, partial):
                    partial.unlink()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _refuse_links(copy: Path, copies: Path) -> None:
    """Raise an OSError if a folder above a copy is a link: the copy would be written somewhere else."""
    for folder in copy.relative_to(copies).parents[:-1]:
        if (copies / folder).is_symlink():
            raise OSError(errno.ELOOP, f"{copies / folder} is a link")


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

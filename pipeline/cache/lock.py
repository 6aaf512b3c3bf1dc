"""Limit a cache to one builder at a time, by an OS lock that is released when its process dies."""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.cache.files import canonical, make_folder, read_regular, refuse_link
from pipeline.cache.paths import OWN_FOLDERS, Cache
from pipeline.errors import CacheError
from pipeline.system import release_lock, take_lock


@contextlib.contextmanager
def lock(cache: Cache) -> Iterator[str]:
    """Lock the cache for one builder, and yield the token of the lock.

    On exit the token is erased from the lock file, and the next builder writes its own there: this is how a worker
    that outlives its builder notices. A folder that was created only for the lock is removed.

    Raises:
        CacheError: another process holds the lock; the message names it, and since when it has held the lock.
    """
    refuse_links(cache)
    path = cache.lock_file
    make_folder(path.parent)
    handle = _take(path)
    try:
        token = secrets.token_hex(16)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        holder = {"token": token, "process": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, canonical(holder))
        yield token
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            _remove_empty(path)
        release_lock(handle)
        os.close(handle)


def _take(path: Path) -> int:
    while True:
        handle = _open(path, os.O_RDWR | os.O_CREAT)
        try:
            take_lock(handle, path)
        except BlockingIOError:
            os.close(handle)
            raise CacheError(
                f"{path.parent.parent}: {_holder(path)} is working on it; wait for it, or stop it"
            ) from None
        # The previous holder may have removed the file between the two calls.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                return handle
        release_lock(handle)
        os.close(handle)


def _open(path: Path, flags: int) -> int:
    plain = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # never block on a pipe
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise CacheError(f"{path}: is not a regular file; remove it and run the command again")
    return os.open(path, flags | plain, 0o644)


def refuse_links(cache: Cache) -> None:
    """Refuse to write below folders that are symbolic links: an untrusted cache could point them anywhere.

    Raises:
        CacheError: a folder of the cache is a link.
    """
    _refuse_links_in(cache.root, lambda folder: folder.name in OWN_FOLDERS)


def _refuse_links_in(folder: Path, descend: Callable[[Path], bool]) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                refuse_link(Path(entry.path))
            if entry.is_dir() and descend(Path(entry.path)):
                _refuse_links_in(Path(entry.path), _is_not_shard)


def _is_not_shard(folder: Path) -> bool:
    """Return whether a folder is not that of a shard; there are many, and each is checked when it is written."""
    return folder.parent.name != "c"


@contextlib.contextmanager
def publisher_lock(cache: Cache) -> Iterator[None]:
    """Hold the lock of the only process that may publish from this folder.

    Raises:
        CacheError: another process is publishing it.
    """
    path = cache.publisher_file
    handle = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            take_lock(handle, path)
        except BlockingIOError:
            raise CacheError(f"{cache}: another process is publishing it; wait for it, or stop it") from None
        yield
    finally:
        release_lock(handle)
        os.close(handle)


def _remove_empty(path: Path) -> None:
    if [entry.name for entry in path.parent.iterdir()] == [path.name] and list(path.parent.parent.iterdir()) == [
        path.parent
    ]:
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()


@contextlib.contextmanager
def shared_lock(cache: Cache) -> Iterator[None]:
    """Keep builders out while the cache is examined, without writing anything.

    Raises:
        CacheError: a builder is at work; the message names it, and since when it has been at work.
    """
    path = cache.lock_file
    try:
        handle = _open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    try:
        try:
            take_lock(handle, path, shared=True)
        except BlockingIOError:
            raise CacheError(f"{cache}: {_holder(path)} is working on it; wait for it, or stop it") from None
        yield
    finally:
        release_lock(handle)
        os.close(handle)


def builder_at_work(cache: Cache) -> str:
    """Describe the process that is building the cache right now; return "" if there is none."""
    try:
        with shared_lock(cache):
            return ""
    except CacheError:
        return _holder(cache.lock_file).rstrip(",")


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        holder = json.loads(read_regular(path))
        return f"process {holder['process']} on {holder['host']}, since {holder['since']},"
    return "another process"


def holds_lock(cache: Cache, token: str) -> bool:
    """Return whether the lock file still names the builder with this token."""
    try:
        return bool(json.loads(read_regular(cache.lock_file))["token"] == token)
    except (OSError, ValueError, KeyError):
        return False

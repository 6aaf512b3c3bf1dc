"""Wrap the operating-system calls that differ between Linux, macOS and Windows, or that some of them lack.

If a call is missing, a portable one replaces it: slower or a little less exact, with the same result. The rest of the
package makes such calls only through this module.
"""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# O_NONBLOCK: opening a named pipe must not block. O_BINARY: Windows would otherwise translate line endings.
READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Without fcntl, a lock is a separate file managed by the filelock package: descriptor -> that lock.
_held: dict[int, Any] = {}


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sync_data(descriptor: int) -> None:
    """Flush a file's content to the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves the content in the drive's write cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk; a no-op on Windows, which does so itself and cannot open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, path: Path, *, shared: bool = False) -> None:
    """Lock an open file without blocking, until `release_lock` is called or the process ends.

    Args:
        descriptor: the file's descriptor, opened only for this lock.
        path: the file's path; without fcntl, the lock is a file next to it, and a shared lock is exclusive too.
        shared: whether other shared locks are allowed at the same time.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    import filelock

    beside = filelock.FileLock(path.with_name(f"{path.name}.held"))
    try:
        beside.acquire(blocking=False)
    except filelock.Timeout:
        raise BlockingIOError(f"{path}: locked") from None
    _held[descriptor] = beside


def release_lock(descriptor: int) -> None:
    """Release a lock. With fcntl this does nothing: the lock ends when its last descriptor is closed."""
    if descriptor in _held:
        _held.pop(descriptor).release()


def is_open_to_others(descriptor: int) -> bool:
    """Return whether other users may read or write an open file; False on Windows, which has no such mode bits."""
    mode = os.fstat(descriptor).st_mode
    return os.name == "posix" and stat.S_ISREG(mode) and bool(mode & (stat.S_IRWXG | stat.S_IRWXO))


def is_own(path: Path) -> bool:
    """Return whether a file or folder belongs to this user and is not a symbolic link."""
    return not path.is_symlink() and (not hasattr(os, "getuid") or path.stat().st_uid == os.getuid())


def read_at(descriptor: int, memory: memoryview, offset: int) -> int:
    """Read into a buffer from an offset; return the number of bytes read, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [memory], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    content = os.read(descriptor, len(memory))
    memory[: len(content)] = content
    return len(content)


def read_from_memory(descriptor: int, memory: memoryview) -> int:
    """Read what is in the page cache and start reading the rest; return the bytes read, 0 if unsupported."""
    try:
        return os.preadv(descriptor, [memory], 0, os.RWF_NOWAIT)
    except (AttributeError, OSError, NotImplementedError):
        return 0


def read_past_cache(descriptor: int, pages: memoryview) -> int:
    """Read with direct I/O, which does not displace files from the page cache; return 0 if unsupported.

    Args:
        pages: buffer that is aligned to a page and whose length is a multiple of the page size.
    """
    if fcntl is None or not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return 0
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        return os.preadv(descriptor, [pages], 0)
    except OSError:
        return 0  # either direct I/O is unsupported here, or the ordinary read that follows reports the error
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


@contextmanager
def memory_limited(limit_bytes: int) -> Iterator[None]:
    """Make allocations beyond the limit fail in this process; has no effect without the resource module."""
    if resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def end_process_after(seconds: float) -> None:
    """End this process after the given number of seconds unless called again; 0 cancels.

    SIGALRM's default action ends the process even while a decoder holds the GIL. Windows lacks the signal, so there a
    file that hangs the decoder blocks the build until it is interrupted.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def ending_signals() -> tuple[int, ...]:
    """Return the signals that end a command: those sent by Ctrl-C, by `kill` or a cluster, and by a closed terminal."""
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block the terminal's signals in this thread and the processes it starts; has no effect on Windows.

    SIGTERM is not blocked, because that is how a parent ends its child processes.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

"""Ask the operating system for what Linux, macOS and Windows give in different ways, or not at all.

Where a call is missing, the plain way stands in: slower or a little less exact, with the same outcome. Nothing else in
the package uses such a call without asking here.
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

# A named pipe must not be waited for; Windows would otherwise translate line ends.
READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Without fcntl a lock is a file of its own, held by the filelock package: descriptor -> that lock.
_held: dict[int, Any] = {}


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sync_data(descriptor: int) -> None:
    """Wait until a file's content is on the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves the content in the drive's own memory
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows does so by itself and opens no folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, path: Path, *, shared: bool = False) -> None:
    """Lock an open file without waiting, until `release_lock` or the end of the process.

    Args:
        descriptor: of the file, opened for this lock alone.
        path: its name; without fcntl the lock is a file beside it, and a shared one excludes others too.

    Raises:
        BlockingIOError: another process holds it.
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
    """Give a lock back. Where fcntl is there, the lock ends with its last open descriptor, so nothing is to be done."""
    if descriptor in _held:
        _held.pop(descriptor).release()


def lets_others_in(descriptor: int) -> bool:
    """Return whether other users may read or write an open file; Windows keeps a user's files by other means."""
    mode = os.fstat(descriptor).st_mode
    return os.name == "posix" and stat.S_ISREG(mode) and bool(mode & (stat.S_IRWXG | stat.S_IRWXO))


def is_own(path: Path) -> bool:
    """Return whether a file or folder is this user's and no link to something else."""
    return not path.is_symlink() and (not hasattr(os, "getuid") or path.stat().st_uid == os.getuid())


def read_at(descriptor: int, memory: memoryview, offset: int) -> int:
    """Read into memory from an offset; return how many bytes came, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [memory], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    content = os.read(descriptor, len(memory))
    memory[: len(content)] = content
    return len(content)


def read_from_memory(descriptor: int, memory: memoryview) -> int:
    """Read what the system has in memory, and have it begin to read the rest; 0 where it cannot tell."""
    try:
        return os.preadv(descriptor, [memory], 0, os.RWF_NOWAIT)
    except (AttributeError, OSError, NotImplementedError):
        return 0


def read_past_cache(descriptor: int, pages: memoryview) -> int:
    """Have the disk write into our memory, which pushes no files out of the system's; 0 where that cannot be done.

    Args:
        pages: memory that begins at a page's start and is whole pages long.
    """
    if fcntl is None or not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return 0
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        return os.preadv(descriptor, [pages], 0)
    except OSError:
        return 0  # if it is not the file system's way, the usual read will say what is wrong
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


@contextmanager
def memory_limited(limit_bytes: int) -> Iterator[None]:
    """Have allocations past the limit fail in this process; without the resource module there is no limit."""
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
    """End this process in so many seconds unless called again; 0 calls it off.

    SIGALRM's default action ends the process even where a decoder holds the interpreter's lock. Windows has no such
    signal, so a file that hangs there waits for its build to be interrupted.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def ending_signals() -> tuple[int, ...]:
    """Return the signals that end a command: Ctrl-C; what `kill` and a cluster send; what a closed terminal sends."""
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Have this thread, and what it starts, not receive what a terminal sends; Windows cannot do that.

    SIGTERM must reach a child, for that is how its parent ends it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

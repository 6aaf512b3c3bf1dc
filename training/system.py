"""Ask the operating system for what Linux, macOS and Windows give in different ways, or not at all.

Where a call is missing, the plain way stands in. Nothing else in the package uses such a call without asking here.
"""

import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Of a file that is read whole: a table of 750,000 slices has 200 MB, predictions of them 150 MB.
MOST_BYTES = 1 << 32
# How a disk refuses to be written.
REFUSALS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
# What Windows lets a process hold of open files through Python's C library, unless it asks for more.
_DESCRIPTORS_WITHOUT_LIMITS = 512


@contextmanager
def locked(file: BinaryIO, path: Path) -> Iterator[None]:
    """Hold an open file alone among all threads and processes; wait for whoever holds it.

    Args:
        file: opened for this block alone.
        path: its name; without fcntl the lock is a file beside it.
    """
    if fcntl is None:
        import filelock

        with filelock.FileLock(path.with_name(f"{path.name}.held")):
            yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # closing does not do where the process has forked meanwhile


def open_file(path: Path) -> BinaryIO:
    """Open a file to be read, and wait for nobody: a stranger's cache or run may have a pipe in its place.

    Raises:
        OSError: it is missing, is not a file, or cannot be read.
    """
    plain = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, plain)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a file", str(path))


def read_whole(path: Path) -> bytes:
    """Return what is in a file.

    Raises:
        OSError: as `open_file`, or it is larger than any that is read whole.
    """
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes", str(path))
        return file.read()


def is_own(path: Path) -> bool:
    """Return whether a file or folder is this user's and no link to something else."""
    return not path.is_symlink() and (not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid())


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk; else a rename may be lost with the power. Windows opens no folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(file: IO[bytes], length: int) -> None:
    """Have the disk keep room for an open file, so that writing to a map of it does not fail; macOS and Windows cannot.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate") and length:
        os.posix_fallocate(file.fileno(), 0, length)


def disk_reads() -> int:
    """Return how often this thread (this process, on macOS) had to wait for a page from the disk; 0 on Windows."""
    if resource is None:
        return 0
    usage = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    return usage.ru_majflt


def peak_memory_bytes() -> int | None:
    """Return the most memory that this process has held at once; None on Windows."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def allow_descriptors(more: int) -> int:
    """Let the process open `more` files than it may now, as far as the system permits; return how many it may open.

    The usual soft limit of 1,024 is there for programs that use select(); the hard one is the administrator's.
    """
    if resource is None:
        return _DESCRIPTORS_WITHOUT_LIMITS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + soft
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    except (OSError, ValueError):  # macOS calls its limit infinite and refuses more than it has
        return soft
    return wanted


def will_need(mapped: mmap.mmap, start: int, length: int) -> None:
    """Ask the system to bring a part of a mapped file into memory, and do not wait for it."""
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED, start, length)

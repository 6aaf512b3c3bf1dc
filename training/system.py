"""System calls that differ between Linux, macOS and Windows, or are missing on some of them.

If a call is missing, a portable fallback is used. The rest of the package makes such calls only through this module.
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

# Size limit of a file that is read into memory: the table of 750,000 slices takes 200 MB, their predictions 150 MB.
MOST_BYTES = 1 << 32
# The error numbers of a full or read-only disk.
REFUSALS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
# The number of files that Python's C library on Windows can have open by default.
_DESCRIPTORS_WITHOUT_LIMITS = 512


@contextmanager
def locked(file: BinaryIO, path: Path) -> Iterator[None]:
    """Lock an open file against all other threads and processes, waiting until it is free.

    Args:
        file: must have been opened for this block.
        path: the file's path; without fcntl, a lock file is created next to it.
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
        fcntl.flock(file, fcntl.LOCK_UN)  # closing does not unlock it if the process has forked in the meantime


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading without ever blocking: an untrusted cache or run may contain a pipe in its place.

    Raises:
        OSError: if it is missing, is not a regular file, or cannot be read.
    """
    plain = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, plain)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a file", str(path))


def read_whole(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: as `open_file`, or if the file is larger than MOST_BYTES.
    """
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes", str(path))
        return file.read()


def is_own(path: Path) -> bool:
    """Return whether a file or folder is owned by this user and is not a symbolic link."""
    return not path.is_symlink() and (not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, without which a power cut may undo a rename; no-op on Windows."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(file: IO[bytes], length: int) -> None:
    """Reserve disk space for an open file, so that writes to a memory map of it cannot fail; Linux only.

    Raises:
        OSError: if there is not enough space.
    """
    if hasattr(os, "posix_fallocate") and length:
        os.posix_fallocate(file.fileno(), 0, length)


def disk_reads() -> int:
    """Return the number of major page faults of this thread (of the process, on macOS); 0 on Windows."""
    if resource is None:
        return 0
    usage = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    return usage.ru_majflt


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process; None on Windows."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def allow_descriptors(more: int) -> int:
    """Raise the limit on open files by `more`, as far as the system permits, and return the new limit.

    The usual soft limit of 1,024 exists for programs that use select(); the administrator sets the hard limit.
    """
    if resource is None:
        return _DESCRIPTORS_WITHOUT_LIMITS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + soft
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    except (OSError, ValueError):  # macOS reports an infinite limit but refuses values above its real one
        return soft
    return wanted


def will_need(mapped: mmap.mmap, start: int, length: int) -> None:
    """Ask the system to load part of a mapped file into memory, without waiting for it."""
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED, start, length)

"""Read complete files into a buffer that is reused."""

import errno
import os
import stat
from collections.abc import Callable

import numpy as np

from pipeline.source.listing import Stamp
from pipeline.system import READ_FLAGS, read_at, read_from_memory, read_past_cache

# No slice or series has 4 GB, and reading such a file would exhaust a worker's memory.
MAX_FILE_BYTES = 4 << 30
PAGE_BYTES = 4096


class Buffer:
    """Reusable memory to read into: the page faults of a new 512 KB array would take longer than the read."""

    def __init__(self) -> None:
        self._memory = _aligned(1 << 20)

    def view(self, size: int) -> memoryview:
        """Return writable memory of `size` bytes that starts at a page boundary; this invalidates earlier views."""
        if size > self._memory.size:
            self._memory = _aligned(max(size, 2 * self._memory.size))
        return self._memory.data[:size]


def _aligned(size: int) -> np.ndarray:
    """Return new memory that starts at a page boundary.

    The system copies into it in two thirds of the time, and reads past the page cache require it.
    """
    memory = np.empty(size + PAGE_BYTES - 1, np.uint8)
    return memory[-memory.ctypes.data % PAGE_BYTES :][:size]


def read_file(
    file: str, buffer: Buffer, before_waiting: Callable[[], object] = lambda: None, *, past_cache: bool = False
) -> tuple[memoryview, Stamp]:
    """Read a complete regular file, in one call if the system has it in memory or `past_cache` is set.

    Args:
        before_waiting: called before the file is read from the disk, if the page cache does not have it.
        past_cache: read past the page cache.

    Returns:
        the content, valid until the buffer is used again, and the file's stamp.

    Raises:
        OSError: it cannot be read, is not a regular file, or is too large.
    """
    # Non-blocking: a named pipe that took the file's place since the scan must not hang the build.
    descriptor = os.open(file, READ_FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        check_size(status.st_size)
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


def check_size(size: int) -> None:
    """Raise an OSError if a file of `size` bytes is too large to be read."""
    if size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES >> 30} GB")

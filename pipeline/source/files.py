"""Read a whole file into memory that is used again and again."""

import errno
import os
import stat
from collections.abc import Callable

import numpy as np

from pipeline.source.listing import Stamp
from pipeline.system import READ_FLAGS, read_at, read_from_memory, read_past_cache

# A file of 4 GB is no slice and no series; reading it would take a worker's memory.
MAX_FILE_BYTES = 4 << 30
PAGE_BYTES = 4096


class Buffer:
    """Memory that is read into again and again: a fresh 512 KB array would cost more in page faults than the read."""

    def __init__(self) -> None:
        self._memory = _aligned(1 << 20)

    def view(self, size: int) -> memoryview:
        """Return writable memory of `size` bytes from a page's beginning; it invalidates what was read before."""
        if size > self._memory.size:
            self._memory = _aligned(max(size, 2 * self._memory.size))
        return self._memory.data[:size]


def _aligned(size: int) -> np.ndarray:
    """New memory that begins a page: the system copies there in two thirds of the time, disks write nowhere else."""
    memory = np.empty(size + PAGE_BYTES - 1, np.uint8)
    return memory[-memory.ctypes.data % PAGE_BYTES :][:size]


def read_file(
    file: str, buffer: Buffer, before_waiting: Callable[[], object] = lambda: None, *, past_cache: bool = False
) -> tuple[memoryview, Stamp]:
    """Read a regular file whole, with one call if the system has it in memory or reads past its cache."""
    # Without waiting: a named pipe that took the file's place since the scan must not hang the build.
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
    """Refuse a file that is too large to be read.

    Raises:
        OSError: it is.
    """
    if size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES >> 30} GB")

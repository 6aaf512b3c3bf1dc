"""Make the temporary folder of a study, and remove those that killed commands have left."""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from training.system import is_own

PREFIX, HELD = "ich-study-", "held.lock"


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Give a new folder that only this user may read, and remove it at the end with what is in it.

    A lock that dies with its process tells which folders are in use; a process's first call removes this user's others.
    """
    remove_left_behind(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder,
        FileLock(Path(folder) / HELD),
    ):
        yield folder


@functools.cache
def remove_left_behind(place: str) -> None:
    """Remove what nobody holds; a folder without a lock may just be being made, and stays."""
    for lock in Path(place).glob(f"{PREFIX}*/{HELD}"):
        with contextlib.suppress(OSError, Timeout):
            if is_own(lock.parent) and is_own(lock):
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)

"""Make the temporary folder of a build's local workers, and remove those that killed builds have left."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline import system

PREFIX = "pipeline-"
LOCK = "in-use"


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder that is gone at the end; the next build removes it if this one is killed.

    A lock that dies with its process tells which are in use.
    """
    _remove_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        lock = Path(folder, LOCK)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            system.take_lock(handle, lock)
            yield folder
        finally:
            system.release_lock(handle)
            os.close(handle)


def _remove_left() -> None:
    """Remove the folders of this user's builds that run no more; what cannot be removed stays."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):
            if system.is_own(lock.parent) and system.is_own(lock):
                _remove_unused(lock)


def _remove_unused(lock: Path) -> None:
    handle = os.open(lock, os.O_RDWR)
    try:
        system.take_lock(handle, lock)  # BlockingIOError: in use
        shutil.rmtree(lock.parent, ignore_errors=True)
        system.release_lock(handle)
    finally:
        os.close(handle)

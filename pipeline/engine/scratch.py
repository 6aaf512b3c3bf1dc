"""Create the temporary folder of a build's local workers, and remove those of builds that were killed."""

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
    """Yield a temporary folder that is removed at the end, or by the next build if this one is killed.

    A lock that the system releases when its process ends shows which folders are in use.
    """
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        lock = Path(folder, LOCK)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            system.take_lock(handle, lock)
            yield folder
        finally:
            system.release_lock(handle)
            os.close(handle)


def _remove_abandoned() -> None:
    """Remove the folders of this user's builds that are no longer running; errors are ignored."""
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

"""The temporary folder of a study, and the removal of folders left by killed commands."""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from training.errors import NoRoomError
from training.system import REFUSALS, is_own

PREFIX, HELD = "ich-study-", "held.lock"


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Yield a new folder that only this user can read, and remove it with its content at the end.

    A lock that ends with its process marks folders in use. The first call in a process removes this user's others.

    Raises:
        NoRoomError: if the folder cannot be created.
    """
    with contextlib.ExitStack() as kept:
        with needs_room():
            remove_left_behind(tempfile.gettempdir())
            made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            folder = kept.enter_context(made)
            kept.enter_context(FileLock(Path(folder) / HELD))
        yield folder


@contextlib.contextmanager
def needs_room() -> Iterator[None]:
    """Raise a NoRoomError if a study's temporary files cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise no_room(os.strerror(error.errno)) from error


def no_room(reason: str) -> NoRoomError:
    """Return the error for temporary files that cannot be written."""
    return NoRoomError(
        f"{tempfile.gettempdir()}: no space for the temporary files of a study ({reason}); free up space there, or "
        "set TMPDIR to a folder with enough space"
    )


@functools.cache
def remove_left_behind(place: str) -> None:
    """Remove folders whose lock is free; a folder without a lock may be about to be locked, and stays."""
    for lock in Path(place).glob(f"{PREFIX}*/{HELD}"):
        with contextlib.suppress(OSError, Timeout):
            if is_own(lock.parent) and is_own(lock):
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)

"""Make the temporary folder of a study, and remove those that killed commands have left."""

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
    """Give a new folder that only this user may read, and remove it at the end with what is in it.

    A lock that dies with its process tells which folders are in use; a process's first call removes this user's others.

    Raises:
        NoRoomError: it cannot be made.
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
    """Have a disk that refuses a study's temporary files be a NoRoomError."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise no_room(os.strerror(error.errno)) from error


def no_room(reason: str) -> NoRoomError:
    """Return the error for temporary files that cannot be written."""
    return NoRoomError(
        f"{tempfile.gettempdir()}: no room for the temporary files of a study ({reason}); free space there, or set "
        "TMPDIR to a folder with room"
    )


@functools.cache
def remove_left_behind(place: str) -> None:
    """Remove what nobody holds; a folder without a lock may just be being made, and stays."""
    for lock in Path(place).glob(f"{PREFIX}*/{HELD}"):
        with contextlib.suppress(OSError, Timeout):
            if is_own(lock.parent) and is_own(lock):
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)

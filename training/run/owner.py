"""Limit a run's folder to one writer at a time, with an OS lock that is released when its process ends."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from training.errors import AGAIN, NotWrittenError, RunError
from training.run.digests import cannot_write

LOCK, HOLDER = ".owner.lock", ".owner.json"
TRAINS = "is training this run"


@contextlib.contextmanager
def owned(run: Path, what: str = TRAINS, *, again: str = AGAIN) -> Iterator[None]:
    """Hold the lock of a run's folder while the context lasts.

    Args:
        run: the folder.
        what: what this process is doing, to be shown to other processes, such as "is training this run".
        again: how to continue after the disk has refused to write.

    Raises:
        RunError: if another process holds the lock; the message says which one, since when and for what.
        NotWrittenError: if a file in the folder cannot be written; the message says how to continue.
    """
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "what": what}
        (run / HOLDER).write_text(json.dumps(holder))
    except Timeout:
        raise RunError(f"{run}: {_holder(run)}; wait for it, or stop it") from None
    except OSError as error:
        lock.release()
        raise NotWrittenError(cannot_write(run / LOCK, error).what, again) from error
    try:
        yield
    except NotWrittenError as error:
        raise NotWrittenError(error.what, again) from error
    finally:
        with contextlib.suppress(OSError):
            (run / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(run: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        holder = json.loads((run / HOLDER).read_bytes())
        who = f"process {holder['process']} on {holder['host']} (since {holder['since']})"
        return f"{who} {holder.get('what', TRAINS)}"
    return f"another process {TRAINS}"

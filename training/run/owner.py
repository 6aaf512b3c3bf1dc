"""Keep a run's folder to one writer at a time, by an OS lock that dies with its process."""

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
TRAINS = "trains this run"


@contextlib.contextmanager
def owned(run: Path, what: str = TRAINS, *, again: str = AGAIN) -> Iterator[None]:
    """Hold a run's folder while the context lasts.

    Args:
        what: this process does with it, to tell another that comes, "trains this run" say.
        again: what goes on with it where the disk has refused to write.

    Raises:
        RunError: another process holds it; says which, since when and what for.
        NotWrittenError: a file of it cannot be written; says what goes on.
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
        who = f"process {holder['process']} on {holder['host']}, since {holder['since']},"
        return f"{who} {holder.get('what', TRAINS)}"
    return f"another process {TRAINS}"

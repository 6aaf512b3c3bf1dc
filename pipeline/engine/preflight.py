"""Check on a worker, before its first task, that it can do what the build needs."""

import os
import socket

from pipeline.cache.lock import holds_lock
from pipeline.engine.context import Context
from pipeline.engine.versions import library_versions
from pipeline.errors import CacheError
from pipeline.planning.jobs import ShardJob
from pipeline.source.files import Buffer

_checked: set[str] = set()


def check_versions(versions: dict[str, str]) -> None:
    """Check that the libraries that affect pixel values have the same versions here as where the build was started.

    Raises:
        CacheError: a version differs; the message names this machine, the library and both versions.
    """
    for name, wanted in versions.items():
        if name == "python":  # does not affect pixel values
            continue
        found = library_versions().get(name, "none")
        if found != wanted:
            raise CacheError(
                f"{_here()}: {name} {found}, the build was started with {wanted}; install the same version there"
            )


def check_worker(context: Context, job: ShardJob) -> None:
    """Check, once per build and process, that this process can reach the source and write to the cache.

    Raises:
        CacheError: it cannot; the message names this machine, the problem and the remedy.
    """
    if context.token in _checked:
        return
    if not holds_lock(context.cache, context.token):
        raise CacheError(
            f"{_here()}: does not see this build's lock in {context.cache}; --out must lie on a file system that all "
            "workers share, under the same path"
        )
    if not os.access(context.cache.root, os.W_OK):
        raise CacheError(f"{_here()}: cannot write to {context.cache}; make --out writable for the workers")
    _check_source(context, job)
    _checked.add(context.token)


def _check_source(context: Context, job: ShardJob) -> None:
    """Raise a CacheError if none of the job's files exists, as when the source is not mounted on this machine."""
    buffer, missing = Buffer(), ""
    for unit in job.units:
        if unit.slot in job.missing:
            continue
        try:
            context.source.read(unit.path, buffer)
            return
        except FileNotFoundError:
            missing = unit.path
        except OSError:
            return
    if missing:
        raise CacheError(
            f"{_here()}: does not see the source ({missing}, for example); --src must be readable under the same path "
            "by all workers"
        )


def _here() -> str:
    return f"worker on {socket.gethostname()}"

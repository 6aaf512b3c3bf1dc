"""List and read a folder behind an address, such as s3://bucket/study."""

import errno
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.errors import SourceError
from pipeline.source.files import Buffer, check_size
from pipeline.source.listing import Listing, Stamp, listing_of
from pipeline.source.names import opened_name

# The error numbers that clients of object stores raise, beside errors of their own, if the server is unavailable.
_UNAVAILABLE = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EBUSY),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH),
}


@dataclass(frozen=True, slots=True)
class Remote:
    """A folder at an address that fsspec supports, such as s3://bucket/study.

    Each file takes two requests: one for its size and time, so that too large a file is refused before it is fetched
    and a change since the scan is noticed, and one for its content.
    """

    address: str

    def scan(self) -> Listing:
        with _scan_errors(self.address):
            system, root = _open_system(self.address)
            found = system.find(root, detail=True)
        paths, sizes, times = [], array("q"), array("q")
        for name, info in found.items():
            path = name[len(root) :].lstrip("/")
            if path and not any(part.startswith(".") for part in path.split("/")):
                paths.append(path)
                sizes.append(info["size"])
                times.append(_mtime_ns(info))
        return listing_of(self.address, paths, sizes, times)

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        with _server_errors(self.address):
            system, root = _open_system(self.address)
            name = f"{root}/{opened_name(path)}"
            system.invalidate_cache(name)
            info = system.info(name)
            check_size(info["size"])
            # With a range, s3fs does not request the size again, and the content cannot exceed the checked size.
            content = system.cat_file(name, start=0, end=info["size"]) if info["size"] else b""
        return memoryview(content), Stamp(len(content), _mtime_ns(info))


@contextmanager
def _scan_errors(address: str) -> Iterator[None]:
    """Turn the errors of fsspec and its packages, as for a wrong or a refused address, into a one-line SourceError."""
    try:
        yield
    except ImportError as error:
        raise SourceError(f"{address}: {error}; for s3:// run: pip install 'ich-cache[s3]'") from None
    except Exception as error:
        raise SourceError(f"{address}: {type(error).__name__}: {error}".splitlines()[0]) from None


@contextmanager
def _server_errors(address: str) -> Iterator[None]:
    """Distinguish an unavailable server, whatever error its client raises, from a file that cannot be read.

    Raises:
        SourceError: the server does not respond, or is busy.
        OSError: the file cannot be read.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _UNAVAILABLE:
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SourceError(
            f"{address}: {what}; finished shards are kept: run the command again when it answers"
        ) from None


def _open_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, which fsspec caches per process, and the root path in it."""
    from fsspec.core import url_to_fs  # imported only for addresses, so that a plan of a folder starts faster

    return url_to_fs(address)


def _mtime_ns(info: Mapping[str, Any]) -> int:
    """Return the modification time in ns since 1970 plus a checksum of the entity tag, each 0 if the store has none."""
    changed = next(
        (info[key] for key in ("LastModified", "mtime", "last_modified", "updated", "created") if info.get(key)), 0
    )
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
    return int(seconds * 1e9) + zlib.crc32(str(info.get("ETag", "")).encode())

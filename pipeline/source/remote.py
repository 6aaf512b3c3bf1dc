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

# What the clients of object stores raise, with other errors of their own, where it is not the file's fault.
_NO_ANSWER = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EBUSY),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH),
}


@dataclass(frozen=True, slots=True)
class Remote:
    """A folder behind an address that fsspec knows, such as s3://bucket/study.

    Reading takes two requests a file: one for its size and time, so that a giant is refused before it is fetched and
    a change between the two shows, and one for its content.
    """

    address: str

    def scan(self) -> Listing:
        with _plain_errors(self.address):
            system, root = _open_system(self.address)
            found = system.find(root, detail=True)
        paths, sizes, times = [], array("q"), array("q")
        for name, info in found.items():
            path = name[len(root) :].lstrip("/")
            if path and not any(part.startswith(".") for part in path.split("/")):
                paths.append(path)
                sizes.append(info["size"])
                times.append(_changed_ns(info))
        return listing_of(self.address, paths, sizes, times)

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        with _server_errors(self.address):
            system, root = _open_system(self.address)
            name = f"{root}/{opened_name(path)}"
            system.invalidate_cache(name)
            info = system.info(name)
            check_size(info["size"])
            # The range keeps s3fs from asking for the size once more, and the content from being larger than checked.
            content = system.cat_file(name, start=0, end=info["size"]) if info["size"] else b""
        return memoryview(content), Stamp(len(content), _changed_ns(info))


@contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    """Turn what fsspec and the packages behind it raise for a wrong address or a refused one into one line."""
    try:
        yield
    except ImportError as error:
        raise SourceError(f"{address}: {error}; for s3:// run: pip install 'ich-cache[s3]'") from None
    except Exception as error:
        raise SourceError(f"{address}: {type(error).__name__}: {error}".splitlines()[0]) from None


@contextmanager
def _server_errors(address: str) -> Iterator[None]:
    """Tell a server that does not answer, by whatever error its client has for that, from a file that cannot be read.

    Raises:
        SourceError: the server does not answer, or has no time.
        OSError: the file cannot be read.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _NO_ANSWER:
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SourceError(
            f"{address}: {what}; finished shards are kept: run the command again when it answers"
        ) from None


def _open_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system, which it keeps open for the process, and the root in it."""
    from fsspec.core import url_to_fs  # only for addresses: a plan of a folder does not wait for it

    return url_to_fs(address)


def _changed_ns(info: Mapping[str, Any]) -> int:
    """Return the time of the last change in ns plus a checksum of the entity tag, if the store has either."""
    changed = next(
        (info[key] for key in ("LastModified", "mtime", "last_modified", "updated", "created") if info.get(key)), 0
    )
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
    return int(seconds * 1e9) + zlib.crc32(str(info.get("ETag", "")).encode())

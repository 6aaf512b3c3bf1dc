"""Digest files to compare their content, and decide which modification times can be trusted."""

import time
from collections.abc import Iterator, Sequence

import xxhash

from pipeline.cache.ledger import UNKNOWN_TIME
from pipeline.source.files import Buffer
from pipeline.source.sources import Source


def trusted_mtime(mtime_ns: int) -> int:
    """Return the modification time, or UNKNOWN_TIME if it is so recent that a later change could have the same one.

    A time in whole seconds may come from a file system that resolves only 2 s; others resolve a timer tick, 10 ms on
    Linux.
    """
    resolution_ns = 2_000_000_000 if mtime_ns % 1_000_000_000 == 0 else 20_000_000
    return mtime_ns if time.time_ns() - mtime_ns > resolution_ns else UNKNOWN_TIME


def digest_files(source: Source, paths: Sequence[str]) -> Iterator[tuple[str, int, int, str]]:
    """Read files only to digest their content.

    Yields:
        (path, size, trusted mtime_ns, xxh3-128 hex); a file that cannot be read is left out.
    """
    buffer = Buffer()
    for path in paths:
        try:
            data, stamp = source.read(path, buffer)
        except OSError:
            continue
        yield path, stamp.size, trusted_mtime(stamp.mtime_ns), xxhash.xxh3_128_hexdigest(data)

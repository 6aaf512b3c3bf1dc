"""Compare files by content, and say how far a time stamp can be believed."""

import time
from collections.abc import Iterator, Sequence

import xxhash

from pipeline.cache.ledger import UNKNOWN_TIME
from pipeline.source.files import Buffer
from pipeline.source.sources import Source


def certain(mtime_ns: int) -> int:
    """The time stamp, or UNKNOWN_TIME where the file could change again under the same stamp.

    File systems with whole seconds give two; the others are within a timer tick, 10 ms on Linux.
    """
    resolution_ns = 2_000_000_000 if mtime_ns % 1_000_000_000 == 0 else 20_000_000
    return mtime_ns if time.time_ns() - mtime_ns > resolution_ns else UNKNOWN_TIME


def digest_files(source: Source, paths: Sequence[str]) -> Iterator[tuple[str, int, int, str]]:
    """Read files only to compare their content.

    Yields:
        (path, size, certain mtime_ns, xxh3-128 hex); a file that cannot be read is left out.
    """
    buffer = Buffer()
    for path in paths:
        try:
            data, stamp = source.read(path, buffer)
        except OSError:
            continue
        yield path, stamp.size, certain(stamp.mtime_ns), xxhash.xxh3_128_hexdigest(data)

"""Read the files of a task, and the next ones ahead of time."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from pipeline.source.files import Buffer
from pipeline.source.folder import Folder
from pipeline.source.listing import Stamp
from pipeline.source.remote import Remote
from pipeline.source.sources import Source

Content = tuple[memoryview, Stamp]
Read = Callable[[str], Content]
# Each request holds a complete file in memory.
REQUESTS_AHEAD = 4
# Two threads keep up with a task; more would only take its CPU time.
DISK_READERS, FILES_AHEAD = 2, 4
# A slice has half a megabyte; a multi-frame file of hundreds is read only when its turn comes.
MAX_BYTES_AHEAD = 8 << 20


@contextlib.contextmanager
def reading(source: Source, paths: Sequence[str]) -> Iterator[Read]:
    """Yield a function that reads a file of the source; the content is valid until the next call.

    Args:
        paths: the files, in the order in which they will be read.
    """
    upcoming = iter(paths)
    if isinstance(source, Remote):
        with _threads(REQUESTS_AHEAD) as pool:
            yield _reading_ahead(source.read, upcoming, pool, REQUESTS_AHEAD)
    elif isinstance(source, Folder):
        with _threads(DISK_READERS) as pool:
            yield _reading_from_disk(source, upcoming, pool)
    else:
        buffer = Buffer()
        yield lambda path: source.read(path, buffer)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _reading_from_disk(source: Folder, upcoming: Iterator[str], pool: ThreadPoolExecutor) -> Read:
    """Start reading ahead at the first file that is not in the page cache: for cached files, it only costs time."""
    buffer, cached = Buffer(), True
    read_ahead = _reading_ahead(partial(source.read, past_cache=True), upcoming, pool, FILES_AHEAD, source.size)

    def start_reading_ahead() -> None:
        nonlocal cached
        cached = False

    def read(path: str) -> Content:
        if cached:
            next(upcoming, None)
            return source.read(path, buffer, start_reading_ahead)
        return read_ahead(path)

    return read


def _reading_ahead(
    fetch: Callable[[str, Buffer], Content],
    upcoming: Iterator[str],
    pool: ThreadPoolExecutor,
    count: int,
    size: Callable[[str], int] = lambda path: 0,
) -> Read:
    """Return a function that reads a file while threads read the next `count` files, except large ones."""
    started: dict[str, tuple[Buffer, Future[Content]] | None] = {}
    free, in_use, large_buffer = [Buffer() for _ in range(count + 1)], list[Buffer](), Buffer()

    def start(path: str) -> tuple[Buffer, Future[Content]] | None:
        if size(path) > MAX_BYTES_AHEAD:
            return None
        buffer = free.pop()
        return buffer, pool.submit(fetch, path, buffer)

    def read(path: str) -> Content:
        free.extend(in_use)
        in_use.clear()
        wanted = started.pop(path, None)
        for ahead in itertools.islice(upcoming, count - len(started)):
            started[ahead] = start(ahead)
        wanted = wanted or started.pop(path, None)
        if wanted is None:
            return fetch(path, large_buffer)
        buffer, future = wanted
        in_use.append(buffer)
        return future.result()

    return read

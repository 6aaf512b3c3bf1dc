"""Read the files of a task, the next ones ahead of the one at work."""

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
# Each holds a whole file in memory.
REQUESTS_AHEAD = 4
# Two readers keep up with a task; more only take its time.
DISK_READERS, FILES_AHEAD = 2, 4
# A slice has half a megabyte; a multi-frame file of hundreds is read when its turn comes.
MAX_BYTES_AHEAD = 8 << 20


@contextlib.contextmanager
def reading(source: Source, paths: Sequence[str]) -> Iterator[Read]:
    """Give a function that reads a file of the source, its memory good until the next call.

    Args:
        paths: the files in the order in which they are going to be read.
    """
    following = iter(paths)
    if isinstance(source, Remote):
        with _threads(REQUESTS_AHEAD) as pool:
            yield _reading_ahead(source.read, following, pool, REQUESTS_AHEAD)
    elif isinstance(source, Folder):
        with _threads(DISK_READERS) as pool:
            yield _reading_from_disk(source, following, pool)
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


def _reading_from_disk(source: Folder, following: Iterator[str], pool: ThreadPoolExecutor) -> Read:
    """Read ahead from the first file on that is not in the system's memory: for those that are it is time lost."""
    buffer, from_memory = Buffer(), True
    read_ahead = _reading_ahead(partial(source.read, past_cache=True), following, pool, FILES_AHEAD, source.size)

    def go_ahead() -> None:
        nonlocal from_memory
        from_memory = False

    def read(path: str) -> Content:
        if from_memory:
            next(following, None)
            return source.read(path, buffer, go_ahead)
        return read_ahead(path)

    return read


def _reading_ahead(
    fetch: Callable[[str, Buffer], Content],
    following: Iterator[str],
    pool: ThreadPoolExecutor,
    count: int,
    size: Callable[[str], int] = lambda path: 0,
) -> Read:
    """Have other threads read the next `count` files, but a large one not before its turn."""
    begun: dict[str, tuple[Buffer, Future[Content]] | None] = {}
    free, lent, for_a_large_one = [Buffer() for _ in range(count + 1)], list[Buffer](), Buffer()

    def begin(path: str) -> tuple[Buffer, Future[Content]] | None:
        if size(path) > MAX_BYTES_AHEAD:
            return None
        buffer = free.pop()
        return buffer, pool.submit(fetch, path, buffer)

    def read(path: str) -> Content:
        free.extend(lent)
        lent.clear()
        wanted = begun.pop(path, None)
        for ahead in itertools.islice(following, count - len(begun)):
            begun[ahead] = begin(ahead)
        wanted = wanted or begun.pop(path, None)
        if wanted is None:
            return fetch(path, for_a_large_one)
        buffer, future = wanted
        lent.append(buffer)
        return future.result()

    return read

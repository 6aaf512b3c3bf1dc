"""A remote store that counts, delays and fails requests, and helpers to read a cache from it."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from testkit.fake_cache import FakeCache
from training.data.cache import Cache
from training.data.stream import Stream
from training.errors import CacheError

SIZE = 32


class FaultyStore(LocalFileSystem):
    """A store at faulty://, backed by a local folder, that counts, delays and fails requests."""

    protocol = "faulty"
    requests: ClassVar[Counter[tuple[str, bool]]] = Counter()  # (path, whether the complete file was requested)
    at_once = most_at_once = 0
    delay_s = 0.0
    fault: Callable[[str], None] = staticmethod(lambda path: None)
    counting = threading.Lock()

    @classmethod
    def reset(cls) -> None:
        cls.requests, cls.at_once, cls.most_at_once, cls.delay_s = Counter(), 0, 0, 0.0
        cls.fault = staticmethod(lambda path: None)

    @classmethod
    def whole(cls) -> Counter[str]:
        """Return how often each complete shard was requested."""
        return Counter({path: n for (path, whole), n in cls.requests.items() if whole and "/images/" in path})

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        store = type(self)
        with store.counting:
            store.requests[path, start is None] += 1
            store.at_once += 1
            store.most_at_once = max(store.most_at_once, store.at_once)
        try:
            time.sleep(store.delay_s)
            store.fault(path)
            return super().cat_file(self._strip_protocol(path), start, end, **kwargs)
        finally:
            with store.counting:
                store.at_once -= 1


fsspec.register_implementation("faulty", FaultyStore, clobber=True)


def fail(times: int, error: Exception, where: str = "/images/") -> Callable[[str], None]:
    left = Counter[str]()

    def fault(path: str) -> None:
        left[path] += where in path
        if 0 < left[path] <= times:
            raise error

    return staticmethod(fault)  # type: ignore[return-value]


def stream_of(cache: Cache, threads: int = 1, lines: np.ndarray | None = None) -> Stream:
    return Stream(cache, SIZE, np.arange(cache.num_slices) if lines is None else lines, 8, threads)


def check_epoch(fake: FakeCache, stream: Stream, epoch: int = 0) -> None:
    """Read an epoch and compare all pixels."""
    seen = []
    for batch in stream.epoch(0, epoch):
        assert np.array_equal(batch.images.numpy(), fake.images[SIZE][batch.lines.numpy()])
        seen += batch.lines.tolist()
    assert sorted(seen) == list(range(len(fake.table)))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("images/*/c/*/0/0/0"))


def message(call: Callable[[], object]) -> str:
    with pytest.raises(CacheError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)

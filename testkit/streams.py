"""Helpers for tests of the stream: a stream over all slices of a cache, and its lines."""

import threading
from pathlib import Path

import numpy as np

from training.data.cache import open_cache
from training.data.stream import Stream

SIZE = 32


def stream_of(path: Path, batch_size: int = 8, threads: int = 1, ahead: int = 4) -> Stream:
    cache = open_cache(path)
    return Stream(cache, SIZE, np.arange(cache.num_slices), batch_size, threads, ahead=ahead)


def lines_of(stream: Stream, seed: int = 0, epoch: int = 0, **options: int | bool) -> list[list[int]]:
    return [batch.lines.tolist() for batch in stream.epoch(seed, epoch, **options)]  # type: ignore[arg-type]


def flat(batches: list[list[int]]) -> list[int]:
    return [line for batch in batches for line in batch]


def stream_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stream") and thread.is_alive()]

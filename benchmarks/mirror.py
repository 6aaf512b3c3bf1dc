"""Measure the cost of --local-copy while it copies, and afterwards.

    python benchmarks/mirror.py [--patients 10] [--delay-ms 1] [--megabytes-per-s 1000] [--repeats 3] [--folder DIR]
    python benchmarks/mirror.py --cache cache.zarr

The store is a folder that answers each request after a delay and sends at a limited rate; nothing else of a bucket is
simulated. One process, one decoding thread, the same shuffled epoch in each case, cases in turns; the best of the
repeats counts. The phantom's shards have 16 slices, so that a small cache has many, because the delay is per shard.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import torch
from frame import best, machine, table
from fsspec.implementations.local import LocalFileSystem
from stream import build_cache

from training.data.cache import open_cache
from training.data.mirror import REQUESTS
from training.data.stream import Stream

CATALOG = Path(__file__).parents[1] / "data_catalog.yaml"


class FarStore(LocalFileSystem):
    """A local folder behind far://, with the delay and rate given by the options."""

    protocol = "far"
    delay_s = 0.0
    bytes_per_s = 1e9
    line = threading.Lock()  # all content is sent through one line

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        time.sleep(self.delay_s)
        content = super().cat_file(self._strip_protocol(path), start, end, **options)
        with self.line:
            time.sleep(len(content) / self.bytes_per_s)
        return content


fsspec.register_implementation("far", FarStore)


class Epoch(NamedTuple):
    """Seconds to the first batch and to the end of an epoch."""

    first: float
    whole: float


def whole_epoch(batches: Iterator[Any]) -> Epoch:
    """Read an epoch to its end and time it."""
    began = time.perf_counter()
    next(batches)
    first = time.perf_counter() - began
    for _ in batches:
        pass
    return Epoch(first, time.perf_counter() - began)


def ways(cache_path: Path, size: int, batch_size: int, copies: Path) -> dict[str, Callable[[], Epoch]]:
    """Return the cases to measure; the second epoch uses the stream, and so the copies, of the first."""

    def open_stream(address: str, local_copy: Path | None) -> Stream:
        cache = open_cache(address, local_copy=local_copy)
        return Stream(cache, size, np.arange(cache.num_slices), batch_size, threads=1)

    near = open_stream(str(cache_path), None)
    whole_epoch(near.epoch(0, 0))
    far = near

    def first_epoch() -> Epoch:
        nonlocal far
        shutil.rmtree(copies, ignore_errors=True)
        far = open_stream(f"far://{cache_path}", copies)
        return whole_epoch(far.epoch(0, 0))

    return {
        "local folder, no copy": lambda: whole_epoch(near.epoch(0, 1)),
        "first epoch, copying whole shards": first_epoch,
        "second epoch, from the copies": lambda: whole_epoch(far.epoch(0, 1)),
        f"no copy: one request per slice, {REQUESTS} at a time, not decoded": lambda: whole_epoch(
            ranges(near, cache_path, batch_size)
        ),
    }


def ranges(stream: Stream, cache_path: Path, batch_size: int) -> Iterator[list[bytes]]:
    """Yield the stored bytes of the slices batch by batch, as a loader without local copies would request them."""
    reader = stream._reader
    everything = reader._places(np.arange(len(stream.stored_bytes)))
    places = [(f"{cache_path}/{reader._array.shard_name(shard)}", start, stop) for shard, start, stop in everything]
    order = np.random.default_rng(0).permutation(len(places)).tolist()
    store = FarStore()
    with ThreadPoolExecutor(REQUESTS) as pool:
        content = pool.map(lambda which: store.cat_file(*places[which]), order)
        while batch := [stored for _, stored in zip(range(batch_size), content, strict=False)]:
            yield batch


def report(cache_path: Path, size: int, batch_size: int, folder: Path, repeats: int) -> None:
    """Measure all cases in turns and print the table."""
    measured = ways(cache_path, size, batch_size, folder / "copies")
    shortest = best(measured, repeats)
    cache = open_cache(cache_path)
    array = cache.array(size)
    print(
        f"{cache.num_slices} slices at {size} px in {array.shards} shards, batches of {batch_size}; the store takes "
        f"{FarStore.delay_s * 1e3:g} ms per request and sends {FarStore.bytes_per_s / 1e6:g} MB/s; {machine()}"
    )
    local = shortest[next(iter(shortest))].whole
    rows = [
        (name, f"{cache.num_slices / whole:.0f}", f"{local / whole:.3f}", f"{first:.3f}")
        for name, (first, whole) in shortest.items()
    ]
    print(table(("way", "images/s", "of local", "first batch, s"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="measure this cache instead of a phantom")
    parser.add_argument("--patients", type=int, default=10, help="of the phantom")
    parser.add_argument("--delay-ms", type=float, default=1.0, help="of the store, per request")
    parser.add_argument("--megabytes-per-s", type=float, default=1000.0, help="of the store, for all requests together")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder to write to; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    FarStore.delay_s, FarStore.bytes_per_s = options.delay_ms / 1e3, options.megabytes_per_s * 1e6
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cache = options.cache
        if cache is None:
            catalog = Path(folder, "data_catalog.yaml")
            catalog.write_text(CATALOG.read_text().replace("rows_per_shard: 256", "rows_per_shard: 16"))
            cache, _ = build_cache(Path(folder), options.patients, "--catalog", str(catalog))
        report(cache.absolute(), options.size, options.batch_size, Path(folder), options.repeats)


if __name__ == "__main__":
    main()

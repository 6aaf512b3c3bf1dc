"""Measure the encoders available for a cache: size, encoding time and decoding time.

    python benchmarks/compression.py [--cache cache.zarr | --patients 20] [--repeats 20]

One core, CPU time, encoders in turns, best of the repeats. All are decoded by blosc into a ring of batches, in shuffled
order and without checksums.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "BLOSC_NTHREADS"), "1"))

import numpy as np
from numcodecs import blosc
from stream import build_cache

from pipeline.cache.lz4 import compress_into
from pipeline.cache.shards import room_for
from training.data.cache import open_cache
from training.data.stream import Stream

IMAGES = 512
BATCH = 64
RING = 6  # batches of memory

blosc.use_threads = False


def blosc_encoder(name: str, level: int) -> Callable[[np.ndarray], bytes]:
    return lambda image: blosc.compress(image, name.encode(), level, blosc.NOSHUFFLE, 0, 1)


def our_encoder(image: np.ndarray) -> bytes:
    """Compress into reused memory, as the shard writer does, and return a copy, as blosc does."""
    if memory.size < room_for(image):
        memory.resize(room_for(image), refcheck=False)
    return memory[: compress_into(image, memory, 0)].tobytes()


memory = np.empty(0, np.uint8)
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "this encoder": our_encoder,
    "blosc lz4 5": blosc_encoder("lz4", 5),
    "blosc lz4 9": blosc_encoder("lz4", 9),
    "blosc lz4hc 4": blosc_encoder("lz4hc", 4),
    "blosc lz4hc 9": blosc_encoder("lz4hc", 9),
    "blosc blosclz 9": blosc_encoder("blosclz", 9),
}


def read_images(cache_path: Path, size: int) -> np.ndarray:
    """Return up to IMAGES slices of a cache in shuffled order, (n, 3, S, S) uint8."""
    cache = open_cache(cache_path)
    stream = Stream(cache, size, np.arange(cache.num_slices), IMAGES)
    return next(stream.epoch(0, 0)).images.numpy().copy()


def seconds(work: Callable[..., object], *lists: list | np.ndarray) -> float:
    """Return the CPU time of calling a function on all items."""
    began = time.thread_time()
    for _ in map(work, *lists):
        pass
    return time.thread_time() - began


def report(images: np.ndarray, repeats: int) -> None:
    """Measure all encoders in turn and print the table."""
    flat = images.reshape(len(images), -1)
    chunks = {name: [encode(image) for image in flat] for name, encode in ENCODERS.items()}
    ring = np.ones((RING, BATCH, flat.shape[1]), np.uint8)
    rng = np.random.default_rng(0)
    encoding, decoding = dict.fromkeys(ENCODERS, np.inf), dict.fromkeys(ENCODERS, np.inf)
    for repeat in range(repeats):
        some = rng.permutation(len(flat))[:BATCH]
        for name, encode in ENCODERS.items():
            encoding[name] = min(encoding[name], seconds(encode, flat[some]))
            stored, batch = [chunks[name][i] for i in some], ring[repeat % RING]
            decoding[name] = min(decoding[name], seconds(blosc.decompress, stored, batch))
            if not np.array_equal(batch[: len(some)], flat[some]):
                raise SystemExit(f"{name}: decoded pixels differ")
    print(f"{len(flat)} images of {flat.shape[1] / 1000:.1f} KB; times and rates are for one core")
    print(f"{'KB':>6} {'of raw':>6} {'encode, ms':>10} {'decode, images/s':>16}")
    for name, stored in chunks.items():
        size = np.mean([len(chunk) for chunk in stored])
        encode_ms, rate = 1e3 * encoding[name] / len(some), len(some) / decoding[name]
        print(f"{size / 1000:6.1f} {size / flat.shape[1]:6.3f} {encode_ms:10.3f} {rate:16.0f}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="measure this cache instead of a phantom")
    parser.add_argument("--patients", type=int, default=20, help="of the phantom")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or build_cache(Path(folder), options.patients)[0]
        report(read_images(cache, options.size), options.repeats)


if __name__ == "__main__":
    main()

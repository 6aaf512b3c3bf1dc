"""Test that the stream detects any damage to a shard: flipped bits, garbage and missing data."""

import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from testkit.fake_cache import FakeCache, write_cache
from testkit.streams import SIZE, flat, lines_of, stream_of, stream_threads
from training.data.cache import open_cache
from training.errors import CacheError

N = 60


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("stream") / "cache.zarr", patients=12, unlabelled=4)


@pytest.fixture
def broken(fake: FakeCache, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fake.path, tmp_path / "cache.zarr"))


def shard_of(path: Path, uid: str) -> tuple[Path, slice]:
    """Find a slice's stored bytes as the format specifies: the shard ends in an index of 8 entries and a CRC."""
    table = open_cache(path).table
    row = int(table.loc[table["sop_instance_uid"] == uid, "row"].iloc[0])
    file = path / f"images/{SIZE}-0badcafe/c/{row // 8}/0/0/0"
    index = np.frombuffer(file.read_bytes()[-(8 * 16 + 4) : -4], "<u8").reshape(8, 2)
    start, length = (int(number) for number in index[row % 8])
    return file, slice(start, start + length)


def flip_bit(file: Path, byte: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("threads", [0, 2])
def test_every_flipped_bit_stops_with_slice_shard_and_way_out(fake: FakeCache, broken: Path, threads: int) -> None:
    rng = np.random.default_rng(0)
    stream = stream_of(broken, threads=threads)
    for uid in rng.choice(fake.table["sop_instance_uid"].to_numpy(), 12, replace=False):
        file, stored = shard_of(broken, uid)
        intact = file.read_bytes()
        flip_bit(file, int(rng.integers(stored.start, stored.stop)), int(rng.integers(8)))
        with pytest.raises(CacheError) as caught:
            lines_of(pickle.loads(pickle.dumps(stream)))
        file.write_bytes(intact)
        assert [word for word in (uid, str(file), "pipeline verify --repair") if word not in str(caught.value)] == []
        assert "\n" not in str(caught.value)
    assert stream_threads() == []
    assert sorted(flat(lines_of(stream))) == list(range(N))


def test_garbage_is_detected(fake: FakeCache, broken: Path) -> None:
    rng = np.random.default_rng(0)
    stream = stream_of(broken, threads=0)
    uid = fake.table["sop_instance_uid"][0]
    file, stored = shard_of(broken, uid)
    intact = file.read_bytes()
    garbage = [(byte, b"\xff") for byte in range(24)] + [(0, rng.bytes(24)), (24, rng.bytes(512))]
    for first, written in garbage:
        content = bytearray(intact)
        content[stored.start + first : stored.start + first + len(written)] = written
        if content == intact:
            continue
        file.write_bytes(content)
        with pytest.raises(CacheError, match=f"{uid} frame 0 .*verify --repair"):
            lines_of(pickle.loads(pickle.dumps(stream)))


def test_the_length_in_a_chunk_is_not_trusted(fake: FakeCache, broken: Path) -> None:
    """blosc does trust it, and may crash the process by reading far beyond the shard."""
    uid, size = fake.table["sop_instance_uid"][0], 3 * SIZE * SIZE
    file, stored = shard_of(broken, uid)
    content = bytearray(file.read_bytes())
    struct.pack_into("<4B4I", content, stored.start, 2, 1, 0x20, 1, size, size, 0x7FFFFFFF, 0x70000000)
    file.write_bytes(content)
    with pytest.raises(CacheError, match=f"{uid} frame 0 .*its header is invalid.*verify --repair"):
        lines_of(stream_of(broken))


def test_complete_batches_are_yielded_before_the_error(fake: FakeCache, broken: Path) -> None:
    order = flat(lines_of(stream_of(fake.path)))
    file, stored = shard_of(broken, fake.table["sop_instance_uid"][order[20]])
    flip_bit(file, stored.start + 20, 0)
    batches = stream_of(broken).epoch(0, 0)
    assert [next(batches).lines.tolist(), next(batches).lines.tolist()] == [order[:8], order[8:16]]
    with pytest.raises(CacheError):
        next(batches)


def test_a_missing_chunk_is_damage_and_not_a_black_image(fake: FakeCache, broken: Path) -> None:
    import google_crc32c

    uid = fake.table["sop_instance_uid"][0]
    file, stored = shard_of(broken, uid)
    content = bytearray(file.read_bytes())
    entry = content.index(np.array([stored.start, stored.stop - stored.start], "<u8").tobytes())
    content[entry : entry + 16] = b"\xff" * 16
    content[-4:] = google_crc32c.value(bytes(content[-(8 * 16 + 4) : -4])).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(CacheError, match=f"{uid} frame 0 .*verify --repair"):
        stream_of(broken)


@pytest.mark.parametrize("damage", ["index", "short", "empty", "missing"])
def test_a_damaged_shard_is_detected_before_the_first_batch(fake: FakeCache, broken: Path, damage: str) -> None:
    file, _ = shard_of(broken, fake.table["sop_instance_uid"][0])
    if damage == "index":
        flip_bit(file, file.stat().st_size - 30, 3)
    elif damage == "short":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "empty":
        os.truncate(file, 0)
    else:
        file.unlink()
    with pytest.raises(CacheError, match="verify --repair") as caught:
        stream_of(broken)
    assert str(file) in str(caught.value)


def test_a_shard_that_vanishes_during_reading_gives_a_one_line_error(broken: Path) -> None:
    stream = stream_of(broken)
    shutil.rmtree(broken / "images")
    with pytest.raises(CacheError, match="shard cannot be read"):
        lines_of(stream)

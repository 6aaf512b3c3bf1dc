"""The LZ4 encoder, tested with blosc's decoder and a plain one: every input round-trips, in few and long matches."""

from concurrent.futures import ThreadPoolExecutor

import numcodecs.blosc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.lz4 import CHUNK_HEADER, LAST_BEGIN, MIN_MATCH, WIDE, WINDOW, compress_into
from pipeline.cache.shards import room_for


def compress(data: np.ndarray) -> bytes:
    """Compress into the middle of a buffer; the bytes on both sides must not change."""
    room, at = room_for(data), 37
    memory = np.full(at + room + 64, 171, np.uint8)
    end = compress_into(data, memory, at)
    assert end <= at + room
    assert (memory[:at] == 171).all()
    assert (memory[at + room :] == 171).all()
    return memory[at:end].tobytes()


def decompress(chunk: bytes, size: int) -> np.ndarray:
    """Decode with blosc into memory of exactly the right size, between bytes that must not change."""
    framed = np.full(size + 64, 171, np.uint8)
    numcodecs.blosc.decompress(chunk, framed[32 : 32 + size])
    assert (framed[:32] == 171).all()
    assert (framed[32 + size :] == 171).all()
    return framed[32 : 32 + size]


def check(data: np.ndarray) -> bytes:
    chunk = compress(data)
    np.testing.assert_array_equal(decompress(chunk, data.size), data.reshape(-1))
    assert len(chunk) <= data.size + 16
    return chunk


def read_block(chunk: bytes) -> tuple[bytes, list[tuple[int, int, int]]]:
    """Decode strictly by the block format; return the data, and the start, offset and length of each match."""
    at, data, found = CHUNK_HEADER.size + 4, bytearray(), []
    while True:
        token = chunk[at]
        literals, at = _length(chunk, at + 1, token >> 4)
        data += chunk[at : at + literals]
        at += literals
        if at == len(chunk):
            return bytes(data), found
        offset = int.from_bytes(chunk[at : at + 2], "little")
        length, at = _length(chunk, at + 2, token & 15)
        found.append((len(data), offset, length + 4))
        assert 0 < offset <= len(data)
        for _ in range(length + 4):
            data.append(data[-offset])


def matches(chunk: bytes) -> list[tuple[int, int]]:
    """Return the offset and length of each match."""
    return [(offset, length) for _, offset, length in read_block(chunk)[1]]


def _length(chunk: bytes, at: int, length: int) -> tuple[int, int]:
    more = length == 15
    while more:
        length, more, at = length + chunk[at], chunk[at] == 255, at + 1
    return length, at


stretches = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 400)).map(lambda pair: pair[0] * pair[1]),
    st.integers(1, 700).map(lambda seed: np.random.default_rng(seed % 3).integers(0, 256, seed, np.uint8).tobytes()),
)


@given(st.lists(stretches, min_size=1, max_size=12))
@settings(max_examples=400, deadline=None)
def test_any_data_round_trips(parts: list[bytes]) -> None:
    check(np.frombuffer(b"".join(parts), np.uint8))


@given(st.lists(stretches, min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_block_follows_the_format(parts: list[bytes]) -> None:
    data = b"".join(parts)
    chunk = compress(np.frombuffer(data, np.uint8))
    if len(chunk) == len(data) + 16:
        return  # stored
    decoded, found = read_block(chunk)
    assert decoded == data
    assert all(begin <= len(data) - 12 and begin + length <= len(data) - 5 for begin, _, length in found)


@pytest.mark.parametrize("size", [*range(1, 128), 269, 270, 271, 525, 4096])
def test_every_small_size_round_trips(size: int) -> None:
    for data in (np.zeros(size, np.uint8), np.arange(size, dtype=np.uint8) % 7, np.arange(size, dtype=np.uint8)):
        check(data)


@pytest.mark.parametrize("literals", [14, 15, 16, 269, 270, 271, 525])
@pytest.mark.parametrize("length", [MIN_MATCH, 18, 19, 20, WIDE - 1, WIDE, WIDE + 1, 2 * WIDE, 273, 274, 275])
def test_lengths_at_the_limits_of_their_encoding_round_trip(literals: int, length: int) -> None:
    rng = np.random.default_rng(literals)
    repeated = rng.permutation(256).astype(np.uint8)
    repeated = np.concatenate([repeated, repeated[::-1]])[:length]
    noise = rng.integers(0, 256, literals, dtype=np.uint8)
    check(np.concatenate([repeated, noise, repeated, noise[:LAST_BEGIN]]))


def test_noise_is_stored_uncompressed() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    assert len(check(noise)) == noise.size + 16


def test_no_match_is_farther_than_the_format_can_express() -> None:
    noise = np.random.default_rng(0).integers(0, 256, WINDOW + 100, dtype=np.uint8)
    assert len(check(np.concatenate([noise, noise]))) == 2 * noise.size + 16
    chunk = check(np.concatenate([noise[: WINDOW - 1], noise]))
    assert {offset for offset, _ in matches(chunk)} == {WINDOW - 1}


def test_a_position_outside_the_window_is_not_mistaken_for_one_inside() -> None:
    """The stored positions repeat after WINDOW bytes."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 256, (40, 12), dtype=np.uint8)
    for gap in (WINDOW - 12, WINDOW, WINDOW + 12, 2 * WINDOW):
        noise = rng.integers(0, 256, gap, dtype=np.uint8)
        check(np.concatenate([words.reshape(-1), noise, words.reshape(-1), words[::-1].reshape(-1), noise[:1000]]))


def test_matches_have_the_minimum_length() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4, (3, 80, 80)).astype(np.uint8)
    assert min(length for _, length in matches(check(image))) >= MIN_MATCH


def test_chunks_are_smaller_than_those_of_blosc_with_fewer_matches() -> None:
    """The image is smooth tissue with a little noise next to air, as in the bone window."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:224j, -1:1:224j]
    inside = np.hypot(x, y) < 0.7
    image = np.stack([np.where(inside, 90 + rng.normal(0, sigma, x.shape), 0) for sigma in (6, 3, 0.4)]).astype(
        np.uint8
    )
    own = check(image)
    blosc = numcodecs.blosc.compress(image.copy(), b"lz4", 5, numcodecs.blosc.NOSHUFFLE, image.size, 1)
    assert len(own) < 0.97 * len(blosc)
    assert len(matches(own)) < 0.85 * len(matches(blosc))


def test_threads_do_not_interfere() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 8, rng.integers(1000, 60_000)).astype(np.uint8) for _ in range(40)]
    expected = [compress(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(compress, images)) == expected

"""Shard files are readable with zarr-python and tensorstore, damage is found, and files appear together."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache import drafts, shards
from pipeline.cache.arrays import new_array_metadata
from pipeline.cache.drafts import Drafts
from pipeline.cache.shards import Codec, ShardWriter, encode_sums, read_shard
from pipeline.planning.stages import ArraySpec

SPEC = ArraySpec(12, "0123abcd")
SHAPE = (3, 12, 12)
CODECS = (Codec("lz4", 5), Codec("lz4hc", 9), Codec("zstd", 1))


def make_images(count: int, seed: int = 0) -> np.ndarray:
    """Return images: the first is noise, the second black, the others are in between."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    images[1::2, :, 6:] = 0
    images[1:2] = 0
    return images


def write_array(root: Path, images: np.ndarray, rows: int, codec: Codec, skip: frozenset[int] = frozenset()) -> None:
    """Write an image array of one shard and the metadata of its sums array, as a build does."""
    documents = new_array_metadata(SPEC, 3, rows, rows, codec)
    for path, document in documents.items():
        (root / path).mkdir(parents=True)
        (root / path / "zarr.json").write_text(json.dumps(document))
    file = root / SPEC.images_path / "c" / "0" / "0" / "0" / "0"
    file.parent.mkdir(parents=True)
    with ShardWriter(file, rows, codec) as writer:
        for position, image in enumerate(images):
            if position not in skip:
                writer.add(position, image)
        assert writer.finish() == file.stat().st_size
    assert writer.digests[0] == xxhash.xxh3_128_hexdigest(images[0].tobytes())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [1, 32, 97])
@pytest.mark.parametrize("write_bytes", [1, 20_000, shards.WRITE_BYTES])
def test_zarr_and_our_reader_read_the_images_written(tmp_path, monkeypatch, codec, rows, write_bytes):
    monkeypatch.setattr(shards, "WRITE_BYTES", write_bytes)
    images = make_images(rows)
    write_array(tmp_path, images, rows, codec)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / SPEC.images_path, mode="r")[:], images)
    file = tmp_path / SPEC.images_path / "c" / "0" / "0" / "0" / "0"
    found = [(position, problem) for position, image, problem in read_shard(file.read_bytes(), SHAPE, rows, codec)]
    assert found == [(position, "") for position in range(rows)]
    for position, image, _ in read_shard(file.read_bytes(), SHAPE, rows, codec):
        np.testing.assert_array_equal(image, images[position])


@pytest.mark.parametrize("codec", CODECS)
def test_tensorstore_reads_the_images_written(tmp_path, codec):
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    images = make_images(40)
    write_array(tmp_path, images, 40, codec)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / SPEC.images_path)}}
    np.testing.assert_array_equal(tensorstore.open(spec, open=True).result().read().result(), images)


def test_a_row_without_an_image_reads_as_zeros_and_a_black_image_is_stored(tmp_path):
    images = make_images(5)
    write_array(tmp_path, images, 5, CODECS[0], skip=frozenset({3}))
    file = tmp_path / SPEC.images_path / "c" / "0" / "0" / "0" / "0"
    assert [position for position, _, _ in read_shard(file.read_bytes(), SHAPE, 5, CODECS[0])] == [0, 1, 2, 4]
    assert not zarr.open_array(tmp_path / SPEC.images_path, mode="r")[3].any()


def test_zarr_reads_sums(tmp_path):
    sums = np.random.default_rng(0).integers(0, 2**63, (7, 3, 2), dtype=np.uint64)
    write_array(tmp_path, make_images(7), 7, CODECS[0])
    file = tmp_path / SPEC.sums_path / "c" / "0" / "0" / "0"
    file.parent.mkdir(parents=True)
    file.write_bytes(encode_sums(sums))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / SPEC.sums_path, mode="r")[:], sums)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), codec=st.sampled_from(CODECS))
def test_any_flipped_bit_is_found(tmp_path_factory, where, bit, codec):
    folder = tmp_path_factory.mktemp("flipped")
    write_array(folder, make_images(4), 4, codec)
    file = folder / SPEC.images_path / "c" / "0" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    try:
        problems = [problem for _, _, problem in read_shard(bytes(content), SHAPE, 4, codec)]
    except ValueError:
        return  # the index is damaged
    assert len([problem for problem in problems if problem]) == 1


def test_a_partial_write_is_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(shards.os, "write", lambda handle, content: write(handle, content[:1000]))
    images = make_images(40)
    write_array(tmp_path, images, 40, CODECS[0])
    np.testing.assert_array_equal(zarr.open_array(tmp_path / SPEC.images_path, mode="r")[:], images)


def test_a_disk_failure_in_the_background_is_raised(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shards.os, "fdatasync", fail)
    monkeypatch.setattr(shards, "WRITE_BYTES", 1000)
    with pytest.raises(OSError, match="Input/output"):
        write_array(tmp_path, make_images(40), 40, CODECS[0])


# --- files that appear together ------------------------------------------------------------------------------------


def test_the_last_file_appears_once_the_others_are_durable(tmp_path, monkeypatch):
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(handle):
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def recording_replace(source, target):
        events.append(("name", str(target)))
        replace(source, target)

    monkeypatch.setattr(drafts.os, "fsync", recording_fsync)
    monkeypatch.setattr(drafts.os, "replace", recording_replace)
    first, second, last = tmp_path / "a" / "b" / "1", tmp_path / "a" / "2", tmp_path / "c" / "done"
    with Drafts(tmp_path) as group:
        for path in (first, second, last):
            group.begin(path).write_bytes(b"content")
        group.publish([first, second], last)
    named = [path for kind, path in events if kind == "name"]
    assert named == [str(first), str(second), str(last)]
    before = [path for kind, path in events[: events.index(("name", str(first)))] if kind == "sync"]
    assert len(before) == 3
    assert all(path.endswith(".partial") for path in before)
    between = events[events.index(("name", str(second))) : events.index(("name", str(last)))]
    assert {str(folder) for folder in (tmp_path, tmp_path / "a", first.parent, last.parent)} <= {p for _, p in between}
    assert events[-1] == ("sync", str(last.parent))


def test_unpublished_drafts_are_removed(tmp_path):
    with Drafts(tmp_path) as group:
        group.begin(tmp_path / "a" / "1").write_bytes(b"content")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

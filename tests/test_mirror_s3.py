"""Test local copies of a cache in a bucket, with a local S3 server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

import s3fs  # noqa: E402

import training.data.mirror  # noqa: E402
from testkit.fake_cache import write_cache  # noqa: E402
from training.data.cache import open_cache  # noqa: E402
from training.data.stream import Stream  # noqa: E402
from training.errors import CacheError  # noqa: E402


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the library would wait between its attempts; this tests ours
    monkeypatch.setattr(training.data.mirror, "RETRY_AFTER_S", (0.01,))
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_cache_in_a_bucket_streams_from_local_copies(server: Any, tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr")
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("bucket")
    bucket.put(str(fake.path), "bucket/cache.zarr", recursive=True)
    address, copies = "s3://bucket/cache.zarr", tmp_path / "copies"

    cache = open_cache(address, local_copy=copies)
    rows = fake.table["row"].to_numpy()
    assert np.array_equal(cache.sums(32, rows), open_cache(fake.path).sums(32, rows))
    stream = Stream(cache, 32, np.arange(cache.num_slices), 8)
    for batch in stream.epoch(0, 0):
        assert np.array_equal(batch.images.numpy(), fake.images[32][batch.lines.numpy()])

    for wrong, commit, word in (
        ("s3://bucket/other.zarr", None, "check the address"),
        ("s3://nowhere/cache.zarr", None, "check the address"),
        (address, cache.commit[:-1] + "x", f"did you mean {cache.commit}?"),
    ):
        with pytest.raises(CacheError, match=word.replace("?", r"\?")):
            open_cache(wrong, commit, copies)

    server.stop()
    assert len(list(stream.epoch(0, 1))) == 5  # everything has been copied
    with pytest.raises(CacheError, match="network"):
        open_cache(address, local_copy=copies)

"""Build from a bucket and publish to a bucket, with moto's server as S3."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from testkit.commits import same_content
from testkit.small import Small, run


@pytest.fixture
def small(three_shards: Small, tmp_path: Path) -> Small:
    return three_shards.copy(tmp_path)


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Yield the address of a bucket on a local moto server, and the path of the server's log."""
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("s3") / "requests.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
    client = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "any", "secret": "any"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", client)
        try:
            for _ in range(200):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
            fsspec.filesystem("s3").mkdir("bucket")
            yield "s3://bucket", log
        finally:
            server.kill()
            server.wait()


def requests(log: Path) -> list[tuple[str, str]]:
    """Return the method and path of every request that the server has answered."""
    return re.findall(r"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP", log.read_text())


def test_from_a_bucket_to_a_cache_to_a_bucket(small, s3, tmp_path):
    address, log = s3
    system = fsspec.filesystem("s3")
    system.put(str(small.src), f"{address}/dicoms", recursive=True)
    direct = small.digest()
    shutil.rmtree(small.out)
    options = small.options()
    options[options.index("--src") + 1] = f"{address}/dicoms"
    before = len(requests(log))
    run("build", *options, "--workers", 0)
    listing, *asked = requests(log)[before:]
    assert listing[1].startswith("/bucket?list-type=2&prefix=dicoms/")
    assert sorted(asked) == sorted((how, f"/bucket/dicoms/{n:03d}.dcm") for how in ("HEAD", "GET") for n in range(20))
    assert small.digest() == direct
    run("publish", small.out, f"{address}/cache.zarr")
    system.get(f"{address}/cache.zarr", str(tmp_path / "back"), recursive=True)
    same_content(small.out, tmp_path / "back")
    again = run("publish", small.out, f"{address}/cache.zarr").stdout
    assert re.match(rf"{address}/cache.zarr: 8 of \d+ files sent", again)

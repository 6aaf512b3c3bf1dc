"""A cache is uploaded whole, root last, and a second time only in what has changed; S3 is moto's server."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from pipeline.upkeep import publish as module
from testkit.small import Small, run, slice_bytes, write, write_slices


@pytest.fixture
def small(tmp_path) -> Small:
    """20 slices in 3 shards, committed."""
    small = Small(tmp_path)
    write_slices(small.src, range(20))
    small.build()
    return small


@pytest.fixture
def sent(monkeypatch) -> list[list[str]]:
    """Every batch of files that is sent, in order."""
    batches = []
    send = module._send

    def recording(system, target, root, files):
        batches.append(list(files))
        send(system, target, root, files)

    monkeypatch.setattr(module, "_send", recording)
    return batches


def same_content(here: Path, there: Path) -> None:
    ours, theirs = zarr.open_group(here, mode="r"), zarr.open_group(there, mode="r")
    assert dict(ours.attrs) == dict(theirs.attrs)
    for path in ours.attrs["sizes"].values():
        np.testing.assert_array_equal(ours[path][:], theirs[path][:])
    assert (here / "metadata.csv").read_bytes() == (there / "metadata.csv").read_bytes()


def test_a_folder_gets_the_commit_and_nothing_private(small, tmp_path, sent):
    there = tmp_path / "there"
    assert "files sent" in run("publish", small.out, f"file://{there}").stdout
    same_content(small.out, there)
    assert not (there / ".pipeline").exists()
    assert [list(batch) for batch in sent[-2:]] == [["zarr.json"], ["metadata.csv", "rejects.csv"]]


def test_only_what_is_lacking_is_sent(small, tmp_path, sent):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    first = {file for batch in sent for file in batch}
    write(small.src / "new.dcm", slice_bytes(77))
    small.build()
    sent.clear()
    run("publish", small.out, f"file://{there}")
    shards = {file for batch in sent for file in batch if "/c/" in file}
    assert shards
    assert not shards & first
    same_content(small.out, there)


def test_a_copy_of_the_same_size_is_sent(small, tmp_path):
    small.labels = {f"1.2.3.0.{number}": number % 2 for number in range(20)}
    for flip in (0, 1):
        small.labels = {uid: label ^ flip for uid, label in small.labels.items()}
        small.build()
        run("publish", small.out, f"file://{tmp_path / 'there'}")
        same_content(small.out, tmp_path / "there")


def test_a_broken_upload_leaves_the_old_commit_and_is_gone_on_with(small, tmp_path, monkeypatch):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    before = (there / "zarr.json").read_bytes()
    write(small.src / "new.dcm", slice_bytes(77))
    small.build()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_send", lambda *arguments: None)
        outcome = run("publish", small.out, f"file://{there}", code=1)
    assert "has not arrived whole; run the command again" in outcome.stderr
    assert (there / "zarr.json").read_bytes() == before
    run("publish", small.out, f"file://{there}")
    same_content(small.out, there)


def test_what_cannot_be_uploaded_is_one_line(small, tmp_path):
    assert "has no commit yet" in run("publish", tmp_path / "empty", "memory://x", code=1).stderr
    assert "nonsense" in run("publish", small.out, "nonsense://x", code=1).stderr
    shard = next(small.out.glob("images/*/c/1/0/0/0"))
    shard.unlink()
    assert f"{shard}: missing; run: pipeline verify" in run("publish", small.out, "memory://x", code=1).stderr


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a bucket on moto's server, on loopback, and the log of its requests."""
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
    """Method and path of every request that the server has answered."""
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
    assert again.startswith(f"{address}/cache.zarr: 7 of ")

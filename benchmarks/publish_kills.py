"""Kill `pipeline publish` at its requests, to S3 and to a folder: a reader must never see a mixture of commits.

    python benchmarks/publish_kills.py [--kills 50] [--seed 0]

Half of the kills are at a random request to moto's S3 server, half at a random rename, link or removal in a folder.
Before each, the cache gets other labels, and other pixels of one slice, in new shards. Meanwhile a reader opens what is
published, first the current commit and then the same by id, and compares commit, table and every pixel with those of
the build. After each kill, the same command must finish the work.
"""

import argparse
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.small import LONG_AGO_NS, Small, slice_bytes, write, write_slices

PUBLISHER = """
import os, random, sys
import fsspec
left = int(sys.argv[3])
def or_die(call):
    def counting(*arguments, **options):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return call(*arguments, **options)
    return counting
if sys.argv[2].startswith("s3://"):
    import s3fs
    fsspec.config.conf["s3"] = {"endpoint_url": os.environ["S3_ENDPOINT"], "key": "any", "secret": "any"}
    s3fs.S3FileSystem._call_s3 = or_die(s3fs.S3FileSystem._call_s3)
else:
    for name in ("replace", "link", "unlink"):
        setattr(os, name, or_die(getattr(os, name)))
from pathlib import Path
from pipeline.cache.paths import Cache
from pipeline.upkeep.publish import publish
publish(Cache(Path(sys.argv[1])), sys.argv[2])
"""


def publish(small: Small, address: str, requests: int) -> bool:
    """Publish in a process that dies after so many requests; return whether it died."""
    command = [sys.executable, "-c", PUBLISHER, str(small.out), address, str(requests)]
    code = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    if code.returncode not in (0, 9):
        raise RuntimeError(code.stderr.decode())
    return code.returncode == 9


def view(address: str, commit: str | None = None) -> tuple[str, bytes, bytes]:
    """Return what a reader sees: the commit's id, its table, and the pixels of all its images."""
    import fsspec
    import zarr

    system, top = fsspec.core.url_to_fs(address)
    system.invalidate_cache()
    import json

    name = f"commits/{commit}.json" if commit else "zarr.json"
    attributes = json.loads(system.cat_file(f"{top}/{name}"))["attributes"]
    table = system.cat_file(f"{top}/{attributes['metadata']['file']}")
    rows = [int(line.split(b",")[0]) for line in table.splitlines()[1:]]
    group = zarr.open_group(address, mode="r")
    images = [group[path][row].tobytes() for path in attributes["sizes"].values() for row in rows]
    return attributes["commit"], table, b"".join(images)


def read_repeatedly(address: str, endpoint: str, stop: Any, seen: Any) -> None:
    """Read the current commit, and the same commit by id, until stopped; then send what was seen."""
    configure(endpoint)
    known: set[tuple[str, bytes, bytes]] = set()
    views = 0
    while not stop.is_set():
        found = view(address)
        known |= {found, view(address, found[0])}
        views += 2
    seen.put((views, known))


def configure(endpoint: str) -> None:
    import fsspec

    fsspec.config.conf["s3"] = {"endpoint_url": endpoint, "key": "any", "secret": "any"}


def campaign(small: Small, address: str, endpoint: str, kills: int, rng: np.random.Generator) -> None:
    spawn = multiprocessing.get_context("spawn")
    stop, seen = spawn.Event(), spawn.Queue()
    publish(small, address, 10**9)
    correct = {view(f"file://{small.out}")}
    reader = spawn.Process(target=read_repeatedly, args=(address, endpoint, stop, seen))
    reader.start()
    killed = 0
    for turn in itertools.count(1):
        small.labels = {f"1.2.3.0.{number}": (number + turn) % 2 for number in range(20)}
        write(small.src / "003.dcm", slice_bytes(3, content=turn), LONG_AGO_NS + turn * 10**9)
        small.build()
        correct.add(view(f"file://{small.out}"))
        killed += publish(small, address, int(rng.integers(40)))
        publish(small, address, 10**9)
        assert view(address) == view(f"file://{small.out}")
        if killed == kills:
            break
    stop.set()
    views, known = seen.get()
    reader.join()
    print(
        f"{address.partition(':')[0]:>4}: {killed} kills, {turn} uploads; {views} views, {len(known - correct)} mixed"
    )
    if known - correct:
        sys.exit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    rng, port = np.random.default_rng(given.seed), 5000 + os.getpid() % 20000
    endpoint = f"http://127.0.0.1:{port}"
    os.environ["S3_ENDPOINT"] = endpoint
    configure(endpoint)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(5)
        import fsspec

        fsspec.filesystem("s3").mkdir("bucket")
        for place in ("file", "s3"):
            with tempfile.TemporaryDirectory() as folder:
                small = Small(Path(folder))
                write_slices(small.src, range(20))
                small.build()
                address = f"file://{folder}/there" if place == "file" else "s3://bucket/cache.zarr"
                campaign(small, address, endpoint, given.kills // 2, rng)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()

"""Stream a cache where the operating system gives less than Linux does: the batches are the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.fake_cache import write_cache

ROOT = Path(__file__).parents[2]
DIGEST = """
import hashlib, sys, mmap, numpy, torch, torchvision  # which know what to do without
modules, calls = (text.split() for text in sys.argv[2:4])
for name in modules: sys.modules[name] = None
for name in calls: delattr(mmap, name)
from pathlib import Path
from training.data.cache import open_cache
from training.data.stream import Stream
from training import system
copies = Path(sys.argv[4]) if sys.argv[4:] else None
cache = open_cache(sys.argv[1] if copies is None else Path(sys.argv[1]).as_uri(), local_copy=copies)
digest = hashlib.sha256()
for batch in Stream(cache, 32, numpy.arange(cache.num_slices), 8).epoch(1, 0):
    digest.update(batch.images.numpy().tobytes())
assert system.allow_descriptors(1) > 0
print(digest.hexdigest(), system.peak_memory_bytes() is None)
"""


def digest(path: Path, *missing: str, copies: tuple[str, ...] = ()) -> list[str]:
    command = [sys.executable, "-c", DIGEST, str(path), *(missing or ("", "")), *copies]
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=where, timeout=300, check=True).stdout.split()


@pytest.mark.parametrize("through_copies", [False, True], ids=["in place", "local copies"])
def test_a_stream_on_windows_gives_the_same_batches(tmp_path: Path, through_copies: bool) -> None:
    fake = write_cache(tmp_path / "cache.zarr", slices=2)
    usual = digest(fake.path)
    copies = (str(tmp_path / "copies"),) if through_copies else ()
    bare = digest(fake.path, "fcntl resource", "MADV_WILLNEED PROT_READ", copies=copies)
    assert bare == [usual[0], "True"]
    assert usual[1] == "False"

"""Test that a cache is streamed in the same way on operating systems with fewer features than Linux."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from testkit.fake_cache import write_cache
from training import system
from training.data.cache import Cache, open_cache
from training.data.stream import Stream

ROOT = Path(__file__).parents[2]
# Print the digest of an epoch read in place, that of one read through local copies, and whether the memory is known.
WINDOWS = """
import sys, mmap, numpy, torch, torchvision  # which know what to do without
for name in ("fcntl", "resource"): sys.modules[name] = None
for name in ("MADV_WILLNEED", "PROT_READ"): delattr(mmap, name)
from pathlib import Path
from tests.training.test_system import digest, open_cache, system
place, copies = (Path(argument) for argument in sys.argv[1:])
assert system.allow_descriptors(1) > 0
print(digest(open_cache(place)), digest(open_cache(place.as_uri(), local_copy=copies)), system.peak_memory_bytes())
"""


def digest(cache: Cache) -> str:
    """Return the SHA-256 of the images of an epoch."""
    found = hashlib.sha256()
    for batch in Stream(cache, 32, np.arange(cache.num_slices), 8).epoch(1, 0):
        found.update(batch.images.numpy().tobytes())
    return found.hexdigest()


def test_a_stream_on_windows_gives_the_same_batches_in_place_and_from_copies(tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr", slices=2)
    command = [sys.executable, "-c", WINDOWS, str(fake.path), str(tmp_path / "copies")]
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=where, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    usual = digest(open_cache(fake.path))
    assert done.stdout.split() == [usual, usual, "None"]
    assert system.peak_memory_bytes() is not None


def test_page_faults_are_counted_per_process_if_not_per_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.delattr(resource, "RUSAGE_THREAD")  # as on macOS
    assert system.disk_reads() == resource.getrusage(resource.RUSAGE_SELF).ru_majflt

"""Caches for the tests of upkeep: each is built once, and a test gets a copy."""

from pathlib import Path

import pytest

from testkit.small import LONG_AGO_NS, Small, frames_bytes, slice_bytes, write, write_slices


@pytest.fixture(scope="package")
def with_history(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A cache with two sizes, two commits, dead rows, labels, a duplicate and a multi-frame file."""
    labels = {f"1.2.3.0.{number}": number % 2 for number in range(20)}
    small = Small(tmp_path_factory.mktemp("history"), sizes=(8, 12), labels=labels)
    write_slices(small.src, range(14))
    write(small.src / "notes.txt", b"not DICOM")
    write(small.src / "twin.dcm", slice_bytes(5))
    write(small.src / "frames.dcm", frames_bytes(30, 11))
    small.build()
    write(small.src / "003.dcm", slice_bytes(3, content=1), LONG_AGO_NS + 10**9)
    (small.src / "004.dcm").unlink()
    small.build("--prune")
    return small


@pytest.fixture
def built(with_history: Small, tmp_path: Path) -> Small:
    """A copy of `with_history`."""
    return with_history.copy(tmp_path)


@pytest.fixture(scope="package")
def two_commits(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A cache of two commits; the second has one slice fewer."""
    small = Small(tmp_path_factory.mktemp("two"), rows=4, labels={f"1.2.3.0.{n}": n % 2 for n in range(9)})
    write_slices(small.src, range(6))
    write(small.src / "notes.txt", b"not DICOM")
    small.build()
    (small.src / "005.dcm").unlink()
    small.build("--prune")
    return small


@pytest.fixture(scope="package")
def three_shards(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A cache of 20 slices in 3 shards."""
    small = Small(tmp_path_factory.mktemp("three"))
    write_slices(small.src, range(20))
    small.build()
    return small

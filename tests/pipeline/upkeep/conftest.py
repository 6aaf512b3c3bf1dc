"""A built cache with a history, for the tests of its upkeep."""

import pytest

from testkit.small import LONG_AGO_NS, Small, frames_bytes, slice_bytes, write, write_slices


@pytest.fixture
def built(tmp_path) -> Small:
    """A cache with a history: two sizes, a second commit, dead rows, labels, a duplicate, a file of many frames."""
    small = Small(tmp_path, sizes=(8, 12), labels={f"1.2.3.0.{number}": number % 2 for number in range(20)})
    write_slices(small.src, range(14))
    write(small.src / "notes.txt", b"not DICOM")
    write(small.src / "twin.dcm", slice_bytes(5))
    write(small.src / "frames.dcm", frames_bytes(30, 11))
    small.build()
    write(small.src / "003.dcm", slice_bytes(3, content=1), LONG_AGO_NS + 10**9)
    (small.src / "004.dcm").unlink()
    small.build("--prune")
    return small

"""After a power cut the old or the new commit is intact, whatever reached the disk, and the same command resumes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from testkit.power import Disk, restore
from testkit.small import LONG_AGO_NS, Small, run, slice_bytes, write, write_slices

# What may be stale after a power cut: the copies of the current commit's tables, the record of which commit was copied,
# and the second records of the current commit and of a shard. Their originals are intact; the next build rewrites them.
COPIES = {"metadata.csv", "rejects.csv", ".pipeline/copied", ".pipeline/head"}
SECOND_RECORDS = ".pipeline/records/"
LABELS = {f"1.2.3.0.{number}": number % 2 for number in range(20)}


def first(small: Small) -> list[object]:
    shutil.rmtree(small.out)
    return ["build", *small.options(), "--workers", 0]


def change(small: Small) -> list[object]:
    """Add a file, change one and remove one."""
    write(small.src / "new.dcm", slice_bytes(15))
    write(small.src / "003.dcm", slice_bytes(3, content=1), LONG_AGO_NS + 10**9)
    (small.src / "004.dcm").unlink()
    return ["build", *small.options(), "--workers", 0, "--prune"]


def rewindow(small: Small) -> list[object]:
    small.level = 60
    return ["build", *small.options(), "--workers", 0]


def relabel(small: Small) -> list[object]:
    small.labels = {uid: 1 - label for uid, label in LABELS.items()}
    return ["build", *small.options(), "--workers", 0]


def collect(small: Small) -> list[object]:
    run(*rewindow(small))
    run(*change(small))
    return ["gc", small.out, "--older-than", "0s", "--yes"]


@pytest.mark.parametrize("act", [first, change, rewindow, relabel, collect])
def test_a_power_cut_before_any_sync_loses_nothing(act: Callable[[Small], list[object]], tmp_path: Path) -> None:
    small = Small(tmp_path / "small", rows=8, labels=dict(LABELS))
    write_slices(small.src, range(10))
    small.build()
    before = small.digest()
    command = act(small)
    small.out.mkdir(exist_ok=True)
    disk = Disk(small.out)
    with disk.watched():
        run(*command)
    after = small.digest()
    assert len(disk.cuts) > 5
    for number, cut in enumerate(disk.cuts):
        left = Small(tmp_path / str(number))
        restore(cut, left.out)
        if (left.out / "zarr.json").exists():
            assert left.digest() in (before, after)
            stale = {name for name in damages(left) if not name.startswith(SECOND_RECORDS)}
            assert act is collect or stale <= COPIES
        run(*[left.out if word == str(small.out) or word == small.out else word for word in command])
        assert left.digest() == after
        left.verify()
        shutil.rmtree(left.folder)


def damages(small: Small) -> set[str]:
    """Return the files that `verify` reports."""
    lines = small.verify(code=None).stdout.splitlines()
    return {line.removeprefix(f"damaged: {small.out}/").split(": ")[0] for line in lines if line.startswith("damaged")}

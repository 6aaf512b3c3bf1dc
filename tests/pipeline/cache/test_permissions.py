"""The files of a cache, a published cache and a report have the permissions that the umask gives."""

import os
from pathlib import Path

import pytest

from testkit.small import Small, run, slice_bytes, write, write_slices


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_cache_and_its_copies_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        small = Small(tmp_path, rows=4)
        write_slices(small.src, range(5))
        small.build()
        write(small.src / "new.dcm", slice_bytes(7))
        small.build()
        run("publish", small.out, (tmp_path / "there").as_uri())
        run("report", small.out, "--out", tmp_path / "there" / "report.html")
    finally:
        os.umask(before)
    made = [path for part in (small.out, tmp_path / "there") for path in part.rglob("*")]
    wrong = [path for path in made if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask]
    assert not wrong

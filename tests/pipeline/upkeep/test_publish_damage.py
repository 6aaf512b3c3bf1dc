"""Publishing never replaces an intact file by a damaged one."""

from pathlib import Path

import numpy as np
import pytest

from testkit.hostile.edits import flip_bit
from testkit.small import Small, run, write_slices


@pytest.mark.parametrize("pattern", ["images/*/c/0/0/0/0", "sums/*/c/0/0/0"])
def test_a_damaged_shard_does_not_replace_an_intact_one(tmp_path: Path, pattern: str) -> None:
    small, there = Small(tmp_path), tmp_path / "there"
    write_slices(small.src, range(3))
    small.build()
    run("publish", small.out, there.as_uri())
    (shard,) = small.out.glob(pattern)
    before = shard.read_bytes()
    flip_bit(shard, np.random.default_rng(0))
    said = run("publish", small.out, there.as_uri(), code=1).stderr
    assert f"{shard}: is damaged" in said
    assert (there / shard.relative_to(small.out)).read_bytes() == before

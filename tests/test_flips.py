"""Test flipped bits in a cache; benchmarks/flips.py tests more of them, also in runs, with every command."""

import numpy as np

from testkit.flips import Found, cache_scene, flip


def test_a_flipped_bit_is_reported_or_changes_nothing(tmp_path):
    found, scene = Found(), cache_scene(tmp_path / "cache", ("verify", "info --digest", "build", "publish", "read"))
    for number in range(20):
        flip(scene, np.random.default_rng([1, number]), found)
    assert found.wrong == []
    assert found.said.total() + found.nothing.total() == 20
    assert found.said.total() > 2

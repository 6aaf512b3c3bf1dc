"""Test flipped bits in a cache; benchmarks/flips.py tests more of them, also in runs, with every command."""

import numpy as np

from testkit.flips import Outcomes, cache_scene, flip


def test_a_flipped_bit_is_reported_or_changes_nothing(tmp_path):
    outcomes = Outcomes()
    scene = cache_scene(tmp_path / "cache", ("verify", "info --digest", "build", "publish", "read"))
    for number in range(20):
        flip(scene, np.random.default_rng([1, number]), outcomes)
    assert outcomes.wrong == []
    assert outcomes.reported.total() + outcomes.unchanged.total() == 20
    assert outcomes.reported.total() > 2

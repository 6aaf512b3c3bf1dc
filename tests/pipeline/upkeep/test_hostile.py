"""Hostile caches, made of a valid one by seeded edits: benchmarks/hostile.py tries more of them."""

import numpy as np
import pytest

from testkit.hostile import KINDS, Tried, attack, valid_cache


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return valid_cache(tmp_path_factory.mktemp("valid") / "cache")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_cache_writes_nothing_outside_and_ends_in_one_line(valid, tmp_path, kind):
    tried = Tried()
    for seed in range(8):
        attack(KINDS[kind], valid, tmp_path, np.random.default_rng([7, seed]), tried)
    assert tried.wrong == []
    assert tried.inputs == 8

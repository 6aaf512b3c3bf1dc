"""Test hostile caches, archives, catalogs, label files and run folders; benchmarks/hostile.py tests more."""

import numpy as np
import pytest

from testkit.hostile import caches, runs, sources
from testkit.hostile.engine import Campaign, Kind, attack

SEEDS = {"cache": 3, "run": 2, "zip": 5, "tar": 4, "catalog": 4, "label file": 4}  # inputs of each kind


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    top = tmp_path_factory.mktemp("valid")
    rooms = (("cache", caches), ("run", runs), ("source", sources))
    return {name: kind for where, room in rooms for name, kind in room.kinds(top / where).items()}


def test_a_hostile_input_is_one_line_and_changes_nothing_outside(kinds, tmp_path):
    campaign = Campaign(commands=4)
    for name, kind in kinds.items():
        for seed in range(SEEDS[name.partition(":")[0]]):
            attack(kind, tmp_path / "around", np.random.default_rng([7, seed]), campaign)
    assert campaign.wrong == []
    assert campaign.inputs == 40

"""The world that cases are made from."""

from pathlib import Path

import pytest

from tests.training.advice.world import World, make_whole


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("advice"))


@pytest.fixture
def world(whole: Path, tmp_path: Path) -> World:
    return World(whole, tmp_path)

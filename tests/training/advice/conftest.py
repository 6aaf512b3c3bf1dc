"""The world that cases are built from."""

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.training.advice.world import CPU, OF_HEADS, World, call, make_shared


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shared(tmp_path_factory.mktemp("advice"))


@pytest.fixture
def world(shared: Path, tmp_path: Path) -> World:
    return World(shared, tmp_path)


@pytest.fixture(scope="package")
def heads(shared: Path) -> Path:
    """The world's run with features and a head over it, each in its own folder."""
    folder = shared / "heads"
    shutil.copytree(shared / "run", folder / "base")
    call("features", "--run", folder / "base", *CPU)
    with patch("training.series.job.finish", lambda *_: {"weighted_log_loss": 0.5}):
        call("series", "--run", folder / "base", "--out", folder / "head", *OF_HEADS)
    return folder

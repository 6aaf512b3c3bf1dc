"""Train one slice model for the tests of heads over series."""

import shutil
from pathlib import Path

import pytest

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, runtime, settings, train
from training.run.task import Task
from training.series.job import features, open_base


@pytest.fixture(scope="package")
def trained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    fake = write_cache(folder / "cache.zarr", patients=10, slices=4)
    run = train(folder / "base", fake.path, settings(epochs=1))
    features(Task(*open_base(run.path), runtime(), HERE), ())
    return run.path


@pytest.fixture(scope="module")
def base(trained_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a slice model with features for each test file, which may write to it."""
    return shutil.copytree(trained_base, tmp_path_factory.mktemp("base") / "base")

"""A cache and an uninterrupted run for the tests of runs."""

import pytest

from testkit.fake_cache import write_cache
from testkit.tiny_run import settings, spawn
from training.run.runs import open_run


@pytest.fixture(scope="session")
def cache_path(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c.zarr", patients=10, slices=5).path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, cache_path):
    """An uninterrupted run of 2 epochs of 5 steps."""
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    process = spawn(path, cache_path, settings(), checkpoint_every=1)
    process.join()
    assert process.exitcode == 0
    return open_run(path)

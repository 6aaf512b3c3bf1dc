"""A cache at an address whose store can be made to fail."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import training.data.mirror
from testkit.fake_cache import FakeCache, write_cache
from testkit.faulty_store import FaultyStore


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("origin") / "cache.zarr", patients=40)  # 34 shards


@pytest.fixture
def address(fake: FakeCache, tmp_path: Path) -> str:
    return f"faulty://{shutil.copytree(fake.path, tmp_path / 'cache.zarr')}"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStore]]:
    monkeypatch.setattr(training.data.mirror, "RETRY_AFTER_S", (0.001, 0.001))
    FaultyStore.reset()
    yield FaultyStore
    FaultyStore.reset()

"""Test the Python interface: its names, an open cache, and the network of a run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import training
from testkit import tiny_run
from testkit.fake_cache import FakeCache, write_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("library") / "cache.zarr", patients=12)


@pytest.fixture(scope="module")
def cache(fake: FakeCache) -> training.Cache:
    return training.open_cache(fake.path)


def test_every_name_exists_and_importing_the_package_is_fast() -> None:
    heavy = "import training, sys; print(*({'torch', 'numpy', 'pandas', 'zarr'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.split() == []
    assert all(hasattr(training, name) for name in training.__all__)
    assert set(training.__all__) <= set(dir(training))
    with pytest.raises(AttributeError, match="no attribute 'open_cash'"):
        training.open_cash  # noqa: B018


def test_images_are_a_zarr_array_of_the_stored_pixels(fake: FakeCache, cache: training.Cache) -> None:
    images = cache.images(32)
    assert isinstance(images, zarr.Array)
    assert np.array_equal(images.oindex[fake.table["row"].to_numpy()], fake.images[32])
    with pytest.raises(PermissionError, match="read-only"):
        images[0] = 0


def test_a_missing_shard_is_an_error_and_not_a_black_image(fake: FakeCache, tmp_path: Path) -> None:
    copy = write_cache(tmp_path / "cache.zarr")
    row = int(copy.table["row"][0])
    images = training.open_cache(copy.path).images(32)
    (copy.path / images.path / "c" / str(row // 8) / "0" / "0" / "0").unlink()
    with pytest.raises(training.CacheError, match=r"cannot be read .*verify --repair"):
        images[row]


def test_a_pinned_commit_keeps_its_arrays(fake: FakeCache, tmp_path: Path) -> None:
    copy = write_cache(tmp_path / "cache.zarr")
    before = training.open_cache(copy.path)
    root = json.loads((copy.path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"] = {}
    root["attributes"]["commit"] = "f" * 16
    (copy.path / "zarr.json").write_text(json.dumps(root))
    again = training.open_cache(copy.path, before.commit)
    assert np.array_equal(again.images(32)[:8], before.images(32)[:8])


def test_split_is_by_patient_and_by_seed(cache: training.Cache) -> None:
    subsets = cache.split(0)
    assert set(subsets) == {"train", "validation", "test"}
    assert (cache.table.assign(subset=subsets).groupby("patient_id")["subset"].nunique() == 1).all()
    assert np.array_equal(subsets, cache.split(0))
    assert not np.array_equal(subsets, cache.split(1))


def test_series_goes_from_foot_to_head(cache: training.Cache) -> None:
    uid = cache.table["series_instance_uid"][7]
    lines = cache.series(uid)
    assert len(lines) == 5
    assert lines["z_mm"].is_monotonic_increasing
    assert cache.table.loc[lines.index].equals(lines)
    with pytest.raises(training.CacheError, match=f"did you mean {uid}"):
        cache.series(uid[:-1])


def test_model_of_a_run_gives_its_probabilities(fake: FakeCache, cache: training.Cache, tmp_path: Path) -> None:
    run = tiny_run.train(tmp_path / "run", fake.path, tiny_run.settings(epochs=1))
    model = training.load_model(tmp_path / "run")
    lines = np.arange(6)
    images, z_norm = (
        torch.from_numpy(fake.images[32][lines]),
        torch.from_numpy(fake.table["z_norm"].to_numpy("f4")[lines]),
    )
    with torch.inference_mode():
        got = model(images, z_norm).numpy()
    from training.run.apply import run_predictions

    _, expected = run_predictions(tiny_run.task(run, cache), lines, tta=False)
    assert got == pytest.approx(expected, abs=1e-5)
    with pytest.raises(training.RunError, match="not a run, it has no settings"):
        training.load_model(tmp_path)

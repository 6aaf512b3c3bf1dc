"""Test the store of features: damage is detected and repaired as advised, and a kill loses nothing."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from safetensors.torch import save_file

from testkit.fake_cache import write_cache
from testkit.hostile.edits import flip_bit
from testkit.tiny_run import HERE, settings, task
from training.data.cache import Cache
from training.errors import RunError
from training.model.network import build_model
from training.run.job import begin
from training.run.runs import Run
from training.series.features import on_disk, read_features, write_features
from training.series.store import MissingFeatures, digests_path, open_store, store_path

Made = tuple[Run, Cache]
ALL = np.arange(24)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run with random weights and the features of all its slices."""
    folder = tmp_path_factory.mktemp("store")
    fake = write_cache(folder / "cache.zarr", patients=8, slices=3)
    run, cache = begin(folder / "run", fake.path, settings(), HERE)
    save_file(build_model(run.config, 6, run.channels).state_dict(), run.weights)
    write_features(task(run, cache), ALL, tta=False)
    return run, cache


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """A copy of `made`, to be damaged."""
    run, cache = made
    path = Path(shutil.copytree(run.path, tmp_path / "run"))
    return Run(path, run.config, run.data, run.environment), cache


def store_files(run: Run) -> list[Path]:
    store = store_path(run, tta=False)
    return [digests_path(store), *sorted(path for path in store.rglob("*") if path.is_file())]


def follow(run: Run, cache: Cache, advice: str) -> None:
    """Follow the advice of an error."""
    store = store_path(run, tta=False)
    assert advice.endswith(f"run: train features --run {run.path}")
    if f"remove {store}" in advice:
        shutil.rmtree(store)
    write_features(task(run, cache), ALL, tta=False)


@pytest.mark.parametrize("number", range(8))
def test_a_flipped_bit_is_found_and_the_advice_restores_the_features(copied: Made, number: int) -> None:
    run, cache = copied
    files, right = store_files(run), read_features(run, cache, ALL, tta=False)
    assert len(files) == 8
    flip_bit(files[number], np.random.default_rng(number))
    with pytest.raises(RunError, match=r"features\.(zarr|digests)") as error:
        read_features(run, cache, ALL, tta=False)
    follow(run, cache, str(error.value))
    found = read_features(run, cache, ALL, tta=False)
    np.testing.assert_allclose(found.features, right.features, atol=1e-3)
    np.testing.assert_allclose(found.logits, right.logits, atol=1e-5)


def test_a_missing_chunk_is_not_read_as_zeros(copied: Made) -> None:
    run, cache = copied
    store = store_path(run, tta=False)
    shutil.rmtree(store / "logits" / "c")
    with pytest.raises(RunError, match="lines 0 to 23 are damaged"):
        read_features(run, cache, ALL, tta=False)


def test_a_killed_writer_leaves_lines_that_are_intact_or_missing(copied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lines are done; the write of the others is interrupted at each of its steps."""
    run, cache = copied
    shutil.rmtree(store_path(run, tta=False))
    write_features(task(run, cache), ALL[:5], tta=False)
    before = read_features(run, cache, ALL[:5], tta=False)
    values = np.ones((24, before.features.shape[1])), np.ones((24, 6))
    set_item, steps = zarr.Array.__setitem__, list[int]()

    def dying(self: zarr.Array, *of: object) -> None:
        if not steps or steps[0] == 0:
            raise KeyboardInterrupt
        steps[0] -= 1
        set_item(self, *of)  # type: ignore[arg-type]

    monkeypatch.setattr(zarr.Array, "__setitem__", dying)
    for last in range(3):
        steps[:] = [last]
        with pytest.raises(KeyboardInterrupt):
            open_store(run, cache, tta=False).write(0, 24, ALL[5:], tuple(of[5:] for of in values))  # type: ignore[arg-type]
        np.testing.assert_array_equal(read_features(run, cache, ALL[:5], tta=False).logits, before.logits)
        with pytest.raises(MissingFeatures, match="lacks the features of 19 slices"):
            read_features(run, cache, ALL, tta=False)
    steps[:] = [3]
    open_store(run, cache, tta=False).write(0, 24, ALL[5:], tuple(of[5:] for of in values))  # type: ignore[arg-type]
    assert (read_features(run, cache, ALL[5:], tta=False).logits == 1).all()


def test_a_full_disk_raises_an_error_rather_than_a_signal(copied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run, cache = copied

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        read_features(run, cache, ALL, tta=False, allocate=on_disk(run.path))

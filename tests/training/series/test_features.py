"""Test that features are those of the run's network, and that their store resumes and belongs to its run."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, runtime, settings, task
from training.data.cache import Cache
from training.errors import RunError
from training.model.augment import Normalise
from training.model.network import build_model
from training.report.pictures import read_images
from training.run.job import begin
from training.run.runs import Run
from training.run.task import Task
from training.series import features as module
from training.series import store as store_module
from training.series.features import on_disk, read_features, write_features
from training.series.job import features, open_base
from training.series.mix import sigmoid
from training.series.store import make_store, open_store, store_path


@pytest.fixture
def made(tmp_path: Path) -> tuple[Run, Cache]:
    """A run with its initial weights."""
    torch.set_num_threads(1)
    fake = write_cache(tmp_path / "cache.zarr", patients=8, slices=3)
    run, cache = begin(tmp_path / "run", fake.path, settings(), HERE)
    save_file(build_model(run.config, 6, run.channels).state_dict(), run.weights)
    return run, cache


def test_zarr_reads_the_features_of_the_network(made: tuple[Run, Cache]) -> None:
    run, cache = made
    assert write_features(task(run, cache), np.arange(24), tta=False) == 24
    store = zarr.open_group(store_path(run, tta=False), mode="r")
    assert store.attrs["commit"] == cache.commit
    net = build_model(run.config, 6, run.channels)
    net.load_state_dict(load_file(run.weights))
    images = torch.from_numpy(read_images(cache, 32, cache.table["row"].to_numpy())).float() / 255
    with torch.inference_mode():
        expected = net.eval().backbone(Normalise(*run.mean_std, torch.device("cpu"))(images))
        logits = net.logits(expected, torch.from_numpy(cache.table["z_norm"].to_numpy(np.float32)))
    assert store["features"].dtype == np.float16
    np.testing.assert_allclose(store["features"][:], expected.numpy(), atol=2e-3)
    np.testing.assert_allclose(store["logits"][:], logits.numpy(), atol=1e-4)


def test_logits_with_tta_are_those_of_the_mean_probability(made: tuple[Run, Cache]) -> None:
    from training.run.apply import run_predictions

    run, cache = made
    write_features(task(run, cache), np.arange(24), tta=True)
    _, expected = run_predictions(task(run, cache), np.arange(24), tta=True)
    found = read_features(run, cache, np.arange(24), tta=True)
    np.testing.assert_allclose(sigmoid(found.logits.astype(float)), expected, atol=1e-5)


def test_a_stopped_store_resumes(made: tuple[Run, Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    run, cache = made
    monkeypatch.setattr(store_module, "BLOCK_LINES", 5)
    extract, calls = module.extract, []

    def dying(*arguments: object, **options: object) -> object:
        calls.append(len(arguments[2]))  # type: ignore[arg-type]
        if len(calls) == 3:
            raise KeyboardInterrupt
        return extract(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "extract", dying)
    with pytest.raises(KeyboardInterrupt):
        write_features(task(run, cache), np.arange(24), tta=False)
    with pytest.raises(RunError, match=r"lacks the features of 14 slices; run: train features --run"):
        read_features(run, cache, np.arange(24), tta=False)
    assert len(read_features(run, cache, np.arange(10), tta=False).logits) == 10
    assert write_features(task(run, cache), np.arange(24), tta=False) == 14
    stored = read_features(run, cache, np.arange(24), tta=False)
    monkeypatch.setattr(module, "extract", extract)
    whole = extract(task(run, cache), module.load_slice_network(run, HERE), np.arange(24), tta=False)
    np.testing.assert_allclose(stored.logits, whole.logits, atol=1e-5)


def test_subsets_of_the_split_are_written_alone(made: tuple[Run, Cache]) -> None:
    run, cache = made
    subsets = run.subsets(cache)
    held_out = np.isin(subsets, ("validation", "test"))
    assert features(task(run, cache), ("validation", "test")) == held_out.sum() > 0
    assert np.array_equal(open_store(run, cache, tta=False).done(), held_out)
    line = f"lacks the features of {(subsets == 'train').sum()} slices; run: train features --run"
    with pytest.raises(RunError, match=line):
        read_features(run, cache, np.arange(24), tta=False)
    assert features(Task(*open_base(run.path), runtime(), HERE), ()) == (~held_out).sum()


def peak_mb(call: Callable[[], object]) -> float:
    """Return the peak memory that a call allocates, in MB."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def test_training_features_are_read_block_by_block(made: tuple[Run, Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is 34 MB of the 3.1 GB of RSNA 2019."""
    run, cache = made[0], replace(made[1], num_slices=20_000)
    monkeypatch.setattr(store_module, "BLOCK_LINES", 1024)
    make_store(run, cache, 512, tta=False)
    store, block = open_store(run, cache, tta=False), np.arange(1024)
    written = np.arange(1024 * 512, dtype=np.float16).reshape(1024, 512)
    for first, end in store.blocks():
        store.write(first, end, block[: end - first], (written[: end - first], np.zeros((end - first, 6), np.float32)))
    lines = np.arange(0, 20_000, 2)
    in_memory = peak_mb(lambda: read_features(run, cache, lines, tta=False))
    streamed = peak_mb(lambda: read_features(run, cache, lines, tta=False, allocate=on_disk(run.path)))
    assert in_memory > lines.size * 512 * 2 / 1e6 > 10
    assert streamed < 5
    found = read_features(run, cache, lines, tta=False, allocate=on_disk(run.path)).features
    np.testing.assert_array_equal(found[:512], written[::2])
    assert not [file for file in run.path.iterdir() if file.name.startswith("tmp")]


def test_features_of_other_weights_or_another_commit_are_refused(made: tuple[Run, Cache], tmp_path: Path) -> None:
    run, cache = made
    write_features(task(run, cache), np.arange(4), tta=False)
    with pytest.raises(RunError, match=r"\(commit .* instead of .*remove .*, then run: train features --run"):
        read_features(run, replace(cache, commit="0123456789abcdef"), np.arange(4), tta=False)
    save_file(build_model(settings(seed=4), 6).state_dict(), run.weights)
    for call in (
        lambda: read_features(run, cache, np.arange(4), tta=False),
        lambda: write_features(task(run, cache), np.arange(4), tta=False),
    ):
        with pytest.raises(RunError, match=r"\(weights "):
            call()

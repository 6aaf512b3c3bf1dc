"""Run the GPU benchmark on the CPU, so that it runs where there is a GPU."""

import click
import pytest
import torch

from benchmarks import step
from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, runtime, settings


@pytest.fixture
def no_gpu_needed(monkeypatch):
    torch.set_num_threads(1)
    for name, result in (("synchronize", None), ("max_memory_allocated", 3 << 30), ("get_device_name", "a CPU")):
        monkeypatch.setattr(torch.cuda, name, lambda result=result: result)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)


@pytest.mark.parametrize("input_threads", [0, 2])
def test_every_part_runs(tmp_path, no_gpu_needed, capsys, input_threads):
    cache = write_cache(tmp_path / "c.zarr", patients=10, slices=5).path
    step.measure(tmp_path / "run", cache, settings(epochs=1000), runtime(input_threads=input_threads), HERE, steps=7)
    said = capsys.readouterr().out
    for part in ("a model on a resident batch", "b with augmentation", "c the run from the cache", "% of a step"):
        assert said.count(part) == 1
    assert "peak GPU memory of the run 3.0 GiB" in said
    assert "evaluation with TTA" in said


def test_a_small_cache_is_refused(tmp_path, no_gpu_needed):
    cache = write_cache(tmp_path / "c.zarr", patients=10, slices=5).path
    with pytest.raises(click.ClickException, match="too few training slices"):
        step.measure(tmp_path / "run", cache, settings(batch_size=32), runtime(), HERE, steps=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        step.main(["--cache", str(tmp_path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "no GPU here: nothing measured\n"

"""Test that an exported network gives the same probabilities as its run, at any batch size."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from testkit.fake_cache import write_cache
from training.data.cache import Cache, open_cache
from training.errors import NotWrittenError, RunError
from training.model import export as module
from training.model.export import export
from training.model.network import build_model
from training.run.config import TrainConfig
from training.run.runs import NewRun, Run, create_run

SIZE = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Cache]:
    """A run of a small network with random weights, and its cache."""
    folder = tmp_path_factory.mktemp("export")
    cache = open_cache(write_cache(folder / "cache.zarr", patients=4, slices=3, sizes=(SIZE,)).path)
    config = TrainConfig(model="mobilenet_v3_small", weights="none", size_px=SIZE)
    subsets = np.repeat(["train", "train", "validation", "test"], 3)
    run = create_run(folder / "run", cache, NewRun(config, subsets, (np.full(3, 0.2), np.full(3, 0.1)), {}))
    save_file(build_model(config, len(cache.classes)).state_dict(), run.weights)
    return run, cache


def test_torch_program_equals_the_run_at_any_batch_size(made: tuple[Run, Cache], tmp_path: Path) -> None:
    assert export(*made, "torch", tmp_path / "model.pt2") < 1e-4
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    together = program(images, torch.linspace(0, 1, 5))
    alone = program(images[3:4], torch.linspace(0, 1, 5)[3:4])
    assert together.shape == (5, 6)
    assert ((together >= 0) & (together <= 1)).all()
    assert torch.allclose(together[3:4], alone, atol=1e-5)


def test_onnx_equals_the_run(made: tuple[Run, Cache], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    assert export(*made, "onnx", tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = np.zeros((1, 3, SIZE, SIZE), np.uint8)
    (probabilities,) = session.run(None, {"images": images, "z_norm": np.zeros(1, np.float32)})
    assert probabilities.shape == (1, 6)
    assert [(of.name, of.shape[0]) for of in session.get_inputs()] == [("images", "batch"), ("z_norm", "batch")]


def test_an_exported_file_that_differs_is_not_kept(
    made: tuple[Run, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._predict
    monkeypatch.setattr(module, "_predict", lambda *values: real(*values) + 2e-4)
    with pytest.raises(RunError, match="not written"):
        export(*made, "torch", tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_write_error_gives_one_line_and_leaves_nothing(
    made: tuple[Run, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(torch.export, "save", lambda _, file, **__: file.write(b"x"))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NotWrittenError, match=r"model\.pt2: cannot be written \(No space left on device\)"):
        export(*made, "torch", tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_rejected(made: tuple[Run, Cache], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ends in \.onnx"):
        export(*made, "onnx", tmp_path / "model.pt")

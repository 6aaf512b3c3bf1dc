"""Test that an exported head accepts series of any length and reproduces its run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, head_task, runtime, settings, task, train
from tests.training.series.test_series_run import refused
from training.data.cache import Cache, open_cache
from training.data.neighbours import order_series
from training.model.export import export
from training.report.pictures import read_images
from training.run.runs import Run
from training.run.task import Task
from training.series import job
from training.series.batches import gaps_mm
from training.series.fit import fit_head
from training.series.job import open_base
from training.series.predict import predict_series

SHARES = [1.0, 0.5, 0.0, 1.0, 1.0, 0.3]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run with each kind of head, one of them on a slice model with context; the shares are SHARES."""
    folder = tmp_path_factory.mktemp("heads")
    fake = write_cache(folder / "cache.zarr", patients=10, slices=5)
    made = {}
    for head, context in (("gru", 1), ("transformer", 0)):
        base = train(folder / f"base{context}", fake.path, settings(model="small_resnet", epochs=1, context=context))
        job.features(Task(*open_base(base.path), runtime(), HERE), ())
        values = {"head": head, "head_features": 16, "batch_size": 2, "epochs": 2}
        opened = job.begin(folder / head, *open_base(base.path), values, HERE)
        fit_head(*head_task(opened))
        mix = {"shares": dict(zip(opened[0].data.classes, SHARES, strict=True))}
        (folder / head / "digests.json").unlink()  # permits the edit
        (folder / head / "mix.json").write_text(json.dumps(mix))
        made[head] = opened[0]
    return made


def some_series(run: Run, cache: Cache, slices: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return inputs of the last series cut to some slices, and the run's probabilities for it."""
    from dataclasses import replace

    order = order_series(cache)
    lines = order.lines[order.starts[-2] :][:slices]
    table = cache.table.iloc[lines].reset_index(drop=True)
    short = replace(cache, table=table, keys=cache.keys[lines], num_slices=len(lines), commit="another")
    inputs = {
        "images": read_images(short, 32, table["row"].to_numpy(), run.context),
        "z_norm": table["z_norm"].to_numpy(np.float32),
        "gap_mm": gaps_mm(order_series(short)),
    }
    return inputs, predict_series(task(run, short), np.arange(len(lines)), tta=False).probabilities


@pytest.mark.parametrize("head", ["gru", "transformer"])
def test_onnx_equals_the_run_at_any_length(heads: dict[str, Run], tmp_path: Path, head: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    run = heads[head]
    cache = open_cache(run.data.cache)
    assert export(run, cache, "onnx", tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [(of.name, of.shape[0]) for of in session.get_inputs()]
    assert names == [("images", "slices"), ("z_norm", "slices"), ("gap_mm", "slices")]
    assert [(of.name, of.shape) for of in session.get_outputs()] == [("probabilities", ["slices", 6])]
    for slices in (1, 2, 5):
        inputs, expected = some_series(run, cache, slices)
        np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(run.data.classes)
    assert json.loads(about["shares"])["any"] == 0.3
    assert json.loads(about["head"]) == head
    assert set(json.loads(about["inputs"])) == {"images", "z_norm", "gap_mm"}
    assert len(json.loads(about["channels"])) == (9 if head == "gru" else 3)


def test_a_torch_program_equals_the_run_at_any_length(heads: dict[str, Run], tmp_path: Path) -> None:
    run = heads["transformer"]
    cache = open_cache(run.data.cache)
    assert export(run, cache, "torch", tmp_path / "model.pt2") < 1e-4
    program = torch.export.load(tmp_path / "model.pt2").module()
    for slices in (1, 4):
        inputs, expected = some_series(run, cache, slices)
        got = program(*map(torch.from_numpy, inputs.values())).detach().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_exporting_a_gru_as_a_torch_program_is_refused_with_a_remedy(heads: dict[str, Run], tmp_path: Path) -> None:
    line = refused("export", "--run", heads["gru"].path, "--format", "torch", "--out", tmp_path / "m.pt2")
    base = heads["gru"].data.base
    assert line.endswith(f"use --format onnx, or export the slice model: train export --run {base} --format torch")

"""Test answers of runs with context, and with a head over the series."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.fake_cache import write_cache
from testkit.study import SIZE_PX, write_phantom
from testkit.tiny_run import HERE, runtime, settings, task, train
from tests.study.conftest import predict
from training.data.cache import open_cache
from training.run.apply import run_predictions
from training.run.job import evaluate
from training.run.runs import Run
from training.run.task import Task
from training.series import fit
from training.series.job import begin, features, open_base
from training.study.building import begin_build, finish_build, make_order


def run_with_neighbours(folder: Path) -> Run:
    cache = write_cache(folder / "train.zarr", patients=20, slices=3, sizes=(SIZE_PX,))
    run = train(folder / "run", cache.path, settings(epochs=1, context=1))
    evaluate(task(run, open_cache(cache.path)), "validation", tta=False)
    return run


def run_with_a_head(folder: Path) -> Run:
    made = write_cache(folder / "train.zarr", patients=20, slices=3, sizes=(SIZE_PX,))
    base = train(folder / "base", made.path, settings(epochs=1))
    features(Task(*open_base(base.path), runtime(), HERE), ())
    small = {"head_features": 16, "batch_size": 3, "epochs": 1, "head_share": "all"}  # uses all of the correction
    run, of_slices, cache = begin(folder / "run", *open_base(base.path), small, HERE)
    fit.fit_head(task(run, cache), of_slices)
    evaluate(task(run, cache), "validation", tta=False)
    return run


@pytest.mark.parametrize("make", [run_with_neighbours, run_with_a_head])
def test_answers_equal_predictions_on_a_cache(make, tmp_path):
    run = make(tmp_path)
    files = write_phantom(tmp_path / "dicom", keep=5)
    said = predict(run.path, (files[0].parent,), tmp_path / "out", "--heatmap", "--sr")
    assert said.exit_code == 0, said.output + said.stderr
    (tmp_path / "work").mkdir()
    cache = open_cache(finish_build(begin_build(make_order(run, files[0].parent, tmp_path / "work"))))
    _, expected = run_predictions(task(run, cache), np.arange(5), tta=False)
    slices = pd.read_csv(tmp_path / "out" / "slices.csv")
    order = [cache.table["sop_instance_uid"].tolist().index(uid) for uid in slices["sop_instance_uid"]]
    found = slices[[f"{name}_probability" for name in run.data.classes]].to_numpy()
    np.testing.assert_allclose(found, expected[order], rtol=0, atol=1e-6)
    assert slices["any_decision"].notna().all()
    assert len(list((tmp_path / "out" / "heatmap").iterdir())) == 1
    assert (tmp_path / "out" / "sr" / "study-1.dcm").exists()

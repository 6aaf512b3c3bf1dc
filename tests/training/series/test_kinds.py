"""Test every command with every kind of run: slice, context, and a head over either."""

from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, head_task, settings, task
from tests.training.series.test_series_run import call
from training.run import job
from training.run.loop import fit
from training.series import job as series
from training.series.fit import fit_head

KINDS = ("slice", "context", "head", "head-on-context")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    fake = write_cache(folder / "cache.zarr", patients=16, slices=4)
    made = {name: folder / name for name in KINDS}
    shares = (0.4, 0.2, 0.4)
    for name, context, head in (("slice", 0, "head"), ("context", 1, "head-on-context")):
        config = settings(model="small_resnet", epochs=1, context=context, split_fractions=shares)
        run, cache = job.begin(made[name], fake.path, config, HERE)
        fit(task(run, cache))
        series.features(task(run, cache), ())
        values = {"head_features": 16, "batch_size": 2, "epochs": 1}
        opened = series.begin(made[head], *series.open_base(made[name]), values, HERE)
        fit_head(*head_task(opened))
        for each in (run, opened[0]):
            job.evaluate(task(each, cache), "test", tta=False)
    return made


def test_every_pair_of_kinds_is_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    said = call("compare", *runs.values(), "--out", tmp_path / "table.csv")
    for a, b in combinations(KINDS, 2):
        assert f"{b} minus {a}, 95 % interval" in said
    table = pd.read_csv(tmp_path / "table.csv")
    losses = table[table["score"] == "weighted_log_loss"]
    assert len(losses) == 6
    assert losses["difference"].notna().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_predicts_and_reports(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    run = runs[kind]
    tested = pd.read_csv(run / "predictions_test.csv")
    cache = run.parent / "cache.zarr"
    call("predict", "--run", run, "--cache", cache, "--out", tmp_path / "all.csv", "--device", "cpu")
    wide = pd.read_csv(tmp_path / "all_wide.csv").set_index("image_id")
    p = [name for name in tested.columns if name.startswith("p_")]
    pd.testing.assert_frame_equal(wide.loc[tested["image_id"], p], tested.set_index("image_id")[p], rtol=1e-4)
    call("report", "--run", run)
    page = (run / "report.html").read_text()
    assert ("Solid: with the head over the series" in page) == kind.startswith("head")
    assert ("1 slice on each side" in page) == kind.endswith("context")

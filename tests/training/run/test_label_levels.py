"""Train on series-level labels and on readers' votes, and check the level at which they are scored."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from testkit.fake_cache import CLASSES, relabel, write_cache
from tests.training.run.test_train_cli import EXPORTS_QUICKLY, QUICK, train
from training.data.cache import open_cache
from training.data.neighbours import SERIES

SMALLEST = [*QUICK, *EXPORTS_QUICKLY, "--set", "split_fractions=[0.4,0.3,0.3]"]


@pytest.mark.parametrize("level", ["series", "study", "patient"])
def test_series_labels_are_scored_per_series(level, tmp_path):
    cache = write_cache(tmp_path / "c.zarr", patients=12, slices=4, label_level=level).path
    assert open_cache(cache).label_level == level
    run = tmp_path / "run"
    result = train("run", "--cache", cache, "--out", run, *SMALLEST)
    assert result.exit_code == 0, result.output
    scores = json.loads((run / "scores_test.json").read_text())
    assert scores["level"] == level
    assert "slice" not in scores["levels"]
    known = pd.read_csv(run / "predictions_test.csv")
    whole = known.groupby(SERIES)[[*CLASSES, *(f"p_{name}" for name in CLASSES)]].max()
    assert scores["classes"]["any"]["n"] == len(whole) < len(known)
    wanted = sk.log_loss(whole["any"].astype(int), whole["p_any"], labels=[0, 1])
    assert scores["classes"]["any"]["log_loss"] == pytest.approx(wanted)
    text = (run / "report.html").read_text()
    assert f"Scores on the test set, {level} by {level}" in text
    assert "no scores by slice position" in text
    evaluated = train("evaluate", "--run", run, "--device", "cpu")
    assert f"test, {level} by {level}" in evaluated.output


def test_runs_on_series_labels_can_be_compared(tmp_path):
    cache = write_cache(tmp_path / "c.zarr", patients=12, slices=4, label_level="series").path
    for name, rate in (("a", 0.001), ("b", 0.002)):
        result = train("run", "--cache", cache, "--out", tmp_path / name, *SMALLEST, "--lr", rate)
        assert result.exit_code == 0, result.output
    compared = train("compare", tmp_path / "a", tmp_path / "b")
    assert compared.exit_code == 0, compared.output
    # The best weights are chosen on the validation set at the level of the labels.
    log = pd.read_csv(tmp_path / "a" / "log.csv")
    scores = json.loads((tmp_path / "a" / "scores_validation.json").read_text())
    assert log["weighted_log_loss"].dropna().tolist() == [pytest.approx(scores["weighted_log_loss"], rel=1e-6)]


def test_soft_labels_train_and_are_scored_by_log_loss(tmp_path):
    fake = write_cache(tmp_path / "c.zarr", patients=12, slices=4)
    votes = np.random.default_rng(0).integers(0, 4, 48) / 3
    relabel(fake, {(line, name): votes[line] for line in range(48) for name in ("subdural", "any")})
    run = tmp_path / "run"
    result = train("run", "--cache", fake.path, "--out", run, *SMALLEST)
    assert result.exit_code == 0, result.output
    known, scores = pd.read_csv(run / "predictions_test.csv"), json.loads((run / "scores_test.json").read_text())
    y, p = known["any"].to_numpy(), known["p_any"].to_numpy()
    assert ((y > 0) & (y < 1)).any()
    assert scores["classes"]["any"]["log_loss"] == pytest.approx(np.mean(-y * np.log(p) - (1 - y) * np.log(1 - p)))
    assert scores["classes"]["any"]["positives"] == (y >= 0.5).sum()
    assert train("report", "--run", run).exit_code == 0

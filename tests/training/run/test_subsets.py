"""Train with one, two and three subsets, as the message about too few patients suggests."""

import json

import pandas as pd
import pytest

from testkit.fake_cache import write_cache
from tests.training.run.test_train_cli import QUICK, refused, train


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "two.zarr", patients=2, slices=8).path


def test_the_message_about_too_few_patients_names_ways_out_that_work(two, tmp_path):
    line = refused("run", "--cache", two, "--out", tmp_path / "run", *QUICK)
    assert "2 patients are too few for train, validation, test" in line
    advice = [word for word in line.split() if word.startswith("split_fractions=")]
    assert advice == ["split_fractions=[0.5,0.5,0]", "split_fractions=[1,0,0]"]
    for number, (setting, subsets) in enumerate(zip(advice, ({"train", "validation"}, {"train"}), strict=True)):
        path = tmp_path / f"run{number}"
        result = train("run", "--cache", two, "--out", path, *QUICK, "--set", setting)
        assert result.exit_code == 0, result.output
        assert set(pd.read_csv(path / "split.csv")["split"]) == subsets
        assert (path / "weights.safetensors").exists()
        assert (path / "scores_validation.json").exists() == ("validation" in subsets)
        assert "report.html" in result.output
        assert "has no test set" in refused("evaluate", "--run", path, "--device", "cpu")
        assert train("report", "--run", path).exit_code == 0
        assert train("run", "--resume", path, "--device", "cpu").exit_code == 0


def test_without_validation_the_last_weights_are_kept_and_all_epochs_run(two, tmp_path):
    path = tmp_path / "run"
    more = ["--epochs", "5", "--set", "split_fractions=[1,0,0]", "--set", "patience_epochs=1"]
    assert train("run", "--cache", two, "--out", path, *QUICK, *more).exit_code == 0
    assert pd.read_csv(path / "log.csv")["epoch"].max() == 4
    assert json.loads((path / "settings.json").read_text())["config"]["split_fractions"] == [1, 0, 0]


def test_a_test_set_without_validation_is_scored_without_thresholds(two, tmp_path):
    path = tmp_path / "run"
    result = train("run", "--cache", two, "--out", path, *QUICK, "--set", "split_fractions=[0.5,0,0.5]")
    assert result.exit_code == 0, result.output
    assert "at_threshold" not in json.loads((path / "scores_test.json").read_text())
    assert "has no validation set" in refused("evaluate", "--run", path, "--split", "validation", "--device", "cpu")


def test_invalid_fractions_are_reported(two, tmp_path):
    for shares in ("[0,0.5,0.5]", "[0.5,0.5,0.5]", "[NaN,0,1]"):
        line = refused("run", "--cache", two, "--out", tmp_path / "run", *QUICK, "--set", f"split_fractions={shares}")
        assert "are not fractions for train, validation and test" in line

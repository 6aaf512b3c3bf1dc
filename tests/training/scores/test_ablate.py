"""Test the ablation: pairs of runs that differ only in the varied part, trained once, and compared."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, SETTINGS, runtime
from training.errors import ConfigError, RunError
from training.run.runs import open_run
from training.scores.ablate import Ablation, ablate, over_seeds
from training.scores.compare import CALIBRATED

MODEL = "squeezenet1_1"  # the fastest to train
VARY = ["position", "context"]
KINDS = ("no-position", "position")
OTHERS = {name: value for name, value in SETTINGS.items() if name != "model"} | {
    "epochs": 1,
    "split_fractions": (0.5, 0.25, 0.25),
}


def test_pairs_differ_only_in_position_and_are_trained_once(tmp_path):
    cache, out = write_cache(tmp_path / "c.zarr", patients=16, slices=4).path, tmp_path / "ablation"
    of, what = Ablation(cache, out, OTHERS, runtime(), HERE), ([MODEL], [0, 1], ["position"])
    table = ablate(of, *what)
    assert len(list(out.glob("*/report.html"))) == 4
    for seed in (0, 1):
        configs = [vars(open_run(out / f"{MODEL}-{kind}-seed{seed}").config) for kind in KINDS]
        assert {name for name in configs[0] if configs[0][name] != configs[1][name]} == {"position"}
        assert [config["seed"] for config in configs] == [seed, seed]
        scores = [json.loads((out / f"{MODEL}-{kind}-seed{seed}" / "scores_test.json").read_bytes()) for kind in KINDS]
        line = table[(table["seed"] == seed) & (table["score"] == "weighted_log_loss")].iloc[0]
        assert line["difference"] == pytest.approx(
            scores[1]["weighted_log_loss"] - scores[0]["weighted_log_loss"], abs=1e-12
        )
    assert "over 2 seeds" in over_seeds(table)
    written = {file: file.stat().st_mtime_ns for file in out.glob("*/weights.safetensors")}
    pd.testing.assert_frame_equal(ablate(of, *what), table)
    assert written == {file: file.stat().st_mtime_ns for file in out.glob("*/weights.safetensors")}
    with pytest.raises(RunError, match="epochs: 1 there, 2 here"):
        ablate(replace(of, settings=OTHERS | {"epochs": 2}), *what)
    check_context_and_series(of, written)


def check_context_and_series(of, written):
    """Both are compared with the existing run with position."""
    table = ablate(of, [MODEL], [0], ["context", "series"])
    runs = {kind: of.out / f"{MODEL}-{kind}-seed0" for kind in ("position", "context", "series")}
    assert open_run(runs["context"]).config.context == 1
    assert open_run(runs["series"]).config.head == "gru"
    assert open_run(runs["series"]).data.split == open_run(runs["position"]).data.split
    assert all(file.stat().st_mtime_ns == then for file, then in written.items())
    main = table[table["score"] == "weighted_log_loss"].set_index("vary")
    assert list(main.index) == ["context", "series"]
    assert main["value_a"].nunique() == 1
    page = (of.out / "ablation.html").read_text()
    assert "What neighbouring slices add" in page
    assert f"{main['difference']['context']:+.4f}".lstrip("+-") in page
    calibrated = table[(table["score"] == CALIBRATED) & (table["class"] == "all")].set_index("vary")["difference"]
    assert "log loss, calibrated" in page
    assert f"{calibrated['context']:+.4f}".lstrip("+-") in page


@pytest.mark.parametrize(("name", "value"), [("position", False), ("seed", 3), ("model", "resnet18"), ("context", 2)])
def test_varied_settings_cannot_be_set_for_all_runs(tmp_path, name, value):
    with pytest.raises(ConfigError, match=f"--set {name}: the runs differ in this setting"):
        ablate(Ablation(tmp_path / "c", tmp_path / "out", {name: value}, runtime(), HERE), ["resnet18"], [0], VARY)
    assert not (tmp_path / "out").exists()

"""Test the training and use of heads over series by command, from features to a report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from testkit.fake_cache import write_cache
from testkit.hostile.edits import flip_bit
from testkit.tiny_run import HERE, head_task, runtime, settings, task, train
from training.cli.main import main
from training.data.cache import open_cache
from training.errors import ConfigError
from training.report import strips
from training.run.inference import Stopped
from training.run.job import evaluate
from training.run.runs import open_run
from training.run.task import Task
from training.scores.predictions import Predictions
from training.scores.results import read_results
from training.series import fit
from training.series.job import begin, features, open_base, resume
from training.series.mix import read_mix
from training.series.predict import predict_series

SMALL = {"head_features": 16, "batch_size": 3, "epochs": 3}


def call(*arguments: object) -> str:
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_an_untrained_head_equals_the_slice_model(base: Path, tmp_path: Path) -> None:
    run, of_slices, cache = begin(
        tmp_path / "head", *open_base(base), SMALL | {"learning_rate": 0.0, "epochs": 1}, HERE
    )
    fit.fit_head(task(run, cache), of_slices)
    assert not read_mix(run).any()
    for opened in (run, of_slices):
        evaluate(task(opened, cache), "test", tta=False)
    a, b = (pd.read_csv(opened.path / "predictions_test.csv") for opened in (run, of_slices))
    pd.testing.assert_frame_equal(a, b, rtol=1e-5)


@pytest.mark.parametrize("head", ["gru", "transformer"])
def test_a_stopped_and_resumed_head_has_the_same_weights(
    base: Path, tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = SMALL | {"head": head}
    whole = begin(tmp_path / "whole", *open_base(base), values, HERE)
    fit.fit_head(*head_task(whole))
    stopped = begin(tmp_path / "stopped", *open_base(base), values, HERE)
    step, steps = fit._train_step, []

    def stopping(*arguments: object) -> None:
        if len(steps) == 4:
            raise Stopped
        steps.append(step(*arguments))  # type: ignore[arg-type, func-returns-value]

    monkeypatch.setattr(fit, "_train_step", stopping)
    with pytest.raises(Stopped):
        fit.fit_head(*head_task(stopped))
    monkeypatch.setattr(fit, "_train_step", step)
    fit.fit_head(*head_task(resume(tmp_path / "stopped", None, {})))
    for name in ("weights.safetensors", "mix.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    assert open_run(tmp_path / "whole").data.base_weights


def test_every_command_accepts_a_head(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "head"
    quick = ["--device", "cpu", "--epochs", 2, "--set", "head_features=16"]
    assert "weighted log loss on test" in call("series", "--run", base, "--out", out, *quick)
    page = (out / "report.html").read_text()
    assert "with a head over their series (gru)" in page
    assert "Solid: with the head over the series" in page
    assert "train series --run base --out RUN" in page
    card = (out / "model_card.md").read_text()
    assert "all slices of an axial head-CT series" in card
    assert "a head over the series (gru) reads its features" in card
    assert "Share of the correction used for each class, chosen on validation: epidural " in card
    assert "predicts each slice within its series, by a head (gru)" in card
    assert "a frozen slice model, trained from small_resnet, none weights (random initialisation" in card
    assert set(json.loads((out / "mix.json").read_text())["shares"]) == set(open_run(base).data.classes)
    stored = (out / "predictions_test.csv").read_text()
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    content = json.loads((moved / "settings.json").read_text())
    content["data"]["base"] = "/nowhere"
    (moved / "settings.json").write_text(json.dumps(content))
    (moved / "digests.json").unlink()  # permits the edit
    flip_bit(moved / "slice_weights.safetensors", np.random.default_rng(0))
    line = refused("evaluate", "--run", moved, "--device", "cpu")
    assert "slice_weights.safetensors: not the weights that the head was trained on; restore the file" in line
    shutil.copy(out / "slice_weights.safetensors", moved)
    call("evaluate", "--run", moved, "--device", "cpu")  # the slice model's run is not there: uses the images
    again, known = pd.read_csv(moved / "predictions_test.csv"), pd.read_csv(out / "predictions_test.csv")
    pd.testing.assert_frame_equal(again, known, rtol=1e-4)
    assert stored == (out / "predictions_test.csv").read_text()
    other = write_cache(tmp_path / "new.zarr", patients=2, slices=3, classes=(), seed=4)
    call("predict", "--run", out, "--cache", other.path, "--out", tmp_path / "s.csv", "--device", "cpu")
    assert len(pd.read_csv(tmp_path / "s_wide.csv")) == 6
    call("evaluate", "--run", base, "--device", "cpu")
    assert "head minus base" in call("compare", base, out)
    line = refused("features", "--run", out, "--device", "cpu")
    assert line.endswith(f"is a head over series; features are those of its slice model: {base}")
    assert line == refused("features", "--run", out, "--cache", tmp_path / "missing.zarr", "--device", "cpu")


def test_several_processes_are_refused(base: Path, tmp_path: Path) -> None:
    two = replace(HERE, count=2)
    for call_it in (
        lambda: features(Task(*open_base(base), runtime(), two), ()),
        lambda: begin(tmp_path / "head", *open_base(base), SMALL, two),
    ):
        with pytest.raises(ConfigError, match=r"need a single process; run the command without torchrun$"):
            call_it()
    assert not (tmp_path / "head").exists()


def test_slices_without_a_position_keep_the_slice_models_logits(base: Path, tmp_path: Path) -> None:
    run, of_slices, cache = begin(tmp_path / "head", *open_base(base), SMALL | {"head_share": "all"}, HERE)
    fit.fit_head(task(run, cache), of_slices)
    z_mm = cache.table["z_mm"].where(cache.table.index != 5)
    odd = replace(open_cache(cache.path), table=cache.table.assign(z_mm=z_mm), commit="another")
    found = predict_series(task(run, odd), np.arange(8), tta=False)
    same = (found.probabilities == found.of_slices).all(axis=1)
    assert same.tolist() == [False] * 5 + [True] + [False] * 2


def test_labels_of_series_score_the_series_and_the_report_shows_its_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = write_cache(tmp_path / "cache.zarr", patients=16, slices=4, label_level="series")
    run = train(tmp_path / "base", fake.path, settings(epochs=1, split_fractions=(0.5, 0.25, 0.25)))
    features(Task(*open_base(run.path), runtime(), HERE), ())
    head = begin(tmp_path / "head", *open_base(run.path), SMALL | {"learning_rate": 0.0, "epochs": 1}, HERE)
    fit.fit_head(*head_task(head))
    alone = evaluate(task(run, open_cache(fake.path)), "validation", tta=False)
    logged = pd.read_csv(head[0].log)["weighted_log_loss"].dropna()
    assert logged.tolist() == [pytest.approx(alone["weighted_log_loss"], rel=1e-5)]
    evaluate(task(head[0], open_cache(fake.path)), "test", tta=False)
    drawn: list[tuple[Predictions, Predictions, np.ndarray, None]] = []
    monkeypatch.setattr(strips, "draw_strip", lambda *shown: drawn.append(shown) or b"")
    strips.strips(read_results(head[0].path), None)
    assert drawn
    for known, of_slices, lines, _ in drawn:
        assert known.slices.equals(of_slices.slices)
        assert len(lines) == 4
        assert known.slices["series_instance_uid"].iloc[lines].nunique() == 1
        assert known.slices["z_norm"].iloc[lines].is_monotonic_increasing


def test_left_out_slices_are_read_but_do_not_count_in_the_loss(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, of_slices, cache = begin(tmp_path / "head", *open_base(base), SMALL, HERE)
    (first,) = {tuple(cache.table.index[run.subsets(cache) == "train"][:2])}
    left_out = np.isin(np.arange(cache.num_slices), first)
    monkeypatch.setattr(type(run), "left_out", lambda self, cache: left_out)
    made = fit._set_up(task(run, cache), of_slices)
    assert np.isin(first, made.train.lines).all()
    assert np.isnan(made.labels[left_out]).all()
    assert not np.isnan(made.labels[made.train.lines]).all()
    assert not np.isin(first, made.train.lines[made.scored(made.train)]).any()


def test_predictions_report_a_damaged_feature_store_and_use_the_images(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    run, of_slices, cache = begin(tmp_path / "head", *open_base(moved), SMALL, HERE)
    fit.fit_head(task(run, cache), of_slices)
    stored = predict_series(task(run, cache), np.arange(8), tta=False)
    (chunk,) = (moved / "features.zarr").glob("features/c/0/*")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    computed = predict_series(task(run, cache), np.arange(8), tta=False)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "features.zarr" in line)
    assert line.endswith(f"; run: train features --run {moved}; reading the images instead")
    np.testing.assert_allclose(computed.probabilities, stored.probabilities, atol=1e-4)
    flip_bit(moved / "digests.json", np.random.default_rng(0))
    predict_series(task(run, cache), np.arange(8), tta=False)
    assert "digests.json: is damaged" in capsys.readouterr().err
    shutil.rmtree(moved)
    predict_series(task(run, cache), np.arange(8), tta=False)
    assert capsys.readouterr().err == ""


def test_errors_are_one_line(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    shutil.rmtree(bare / "features.zarr")
    out = ["--out", tmp_path / "head", "--device", "cpu"]
    line = refused("series", "--run", bare, *out)
    assert line.endswith(f"has no features yet; run: train features --run {bare}")
    shutil.copytree(base / "features.zarr", bare / "features.zarr")
    weights = bytearray((bare / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (bare / "weights.safetensors").write_bytes(weights)
    assert "weights.safetensors: is damaged" in refused("series", "--run", bare, *out)
    (bare / "digests.json").unlink()  # disables the checks
    (bare / "weights.safetensors").write_bytes((base / "weights.safetensors").read_bytes())
    (bare / "linked.csv").write_text((base / "linked.csv").read_text().replace("done", "dome"))
    assert "linked.csv: is not the one that the run started with" in refused("series", "--run", bare, *out)
    (bare / "weights.safetensors").write_bytes(weights)
    assert "(weights " in refused("series", "--run", bare, *out)
    content = json.loads((bare / "settings.json").read_text())
    content["data"]["commit"] = "0" * 16
    (bare / "settings.json").write_text(json.dumps(content))
    line = refused("series", "--run", bare, *out)
    assert "a head is trained on the commit of its slice model" in line
    assert "size_px: is taken from the slice model" in refused("series", "--run", base, *out, "--set", "size_px=64")
    assert "to continue: train run --resume" in refused("series", "--resume", base)
    assert not (tmp_path / "head").exists()

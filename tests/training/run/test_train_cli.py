"""Test the command `train` as a user would: the files it writes, the input it rejects, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from testkit import commands
from testkit.fake_cache import CLASSES, write_cache
from training.cli.main import main

SMALL = ["--model", "small_resnet", "--weights", "none", "--size", "32", "--batch-size", "8", "--device", "cpu"]
QUICK = [*SMALL, "--epochs", "1", "--input-threads", "0", "--set", "fusion_features=16"]
# A model with few layers, which takes a third of the time to export.
EXPORTS_QUICKLY = ["--model", "squeezenet1_1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def train(*arguments):
    torch.set_num_threads(1)
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(*arguments):
    """Call a command that must fail with one line on stderr, and return the line; there may be output on stdout."""
    result = train(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c.zarr", patients=10, slices=4).path


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    path = tmp_path_factory.mktemp("runs") / "run"
    result = train("run", "--cache", cache, "--out", path, *QUICK)
    assert result.exit_code == 0, result.output
    return path


def test_a_run_folder_has_the_documented_files(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "settings.json",
        "split.csv",
        "log.csv",
        "checkpoints",
        "weights.safetensors",
        "predictions_validation.csv",
        "predictions_test.csv",
        "scores_validation.json",
        "scores_test.json",
        "report.html",
        "tensorboard",
    }
    split = pd.read_csv(run / "split.csv")
    assert list(split.columns) == ["patient_id", "split"]
    assert set(split["split"]) == {"train", "validation", "test"}
    scores = json.loads((run / "scores_test.json").read_text())
    assert 0 < scores["weighted_log_loss"] < 2
    assert list(scores["classes"]) == list(CLASSES)
    wanted = {"log_loss", "precision", "recall", "f1", "roc_auc", "average_precision"}
    assert all(wanted <= set(of) for of in scores["classes"].values())
    assert json.loads((run / "settings.json").read_text())["config"]["batch_size"] == 8


def test_evaluate_reproduces_the_run_and_tta_is_stored_separately(run, cache, tmp_path):
    before = (run / "scores_validation.json").read_bytes()
    moved = tmp_path / "moved.zarr"
    cache.rename(moved)
    try:
        line = refused("evaluate", "--run", run, "--split", "validation", "--device", "cpu")
        assert "no cache here" in line
        assert "give its new path with --cache" in line
        options = ["--run", run, "--split", "validation", "--cache", moved, "--device", "cpu"]
        assert train("evaluate", *options).exit_code == 0
        assert (run / "scores_validation.json").read_bytes() == before
        result = train("evaluate", *options, "--tta")
    finally:
        moved.rename(cache)
    tta = json.loads((run / "scores_validation_tta.json").read_text())
    assert f"weighted log loss on validation with TTA: {tta['weighted_log_loss']:.4f}" in result.output
    assert (run / "scores_validation.json").read_bytes() == before


def test_predict_writes_the_competition_format(run, tmp_path):
    unlabelled = write_cache(tmp_path / "new.zarr", patients=3, slices=3, classes=(), seed=4)
    out = tmp_path / "out" / "submission.csv"
    result = train("predict", "--run", run, "--cache", unlabelled.path, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    lines = out.read_text().splitlines()
    assert lines[0] == "ID,Label"
    assert [line.split(",")[0] for line in lines[1:]] == [
        f"{image}_{name}" for image in unlabelled.table["image_id"] for name in CLASSES
    ]
    submission, wide = pd.read_csv(out), pd.read_csv(out.with_name("submission_wide.csv"))
    p = wide[[f"p_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(submission["Label"], p.ravel(), rtol=1e-15)
    assert ((p > 0) & (p < 1)).all()
    series = pd.read_csv(out.with_name("submission_series.csv"))
    assert series["slices"].tolist() == [3, 3, 3]
    np.testing.assert_allclose(series["p_any"], p[:, -1].reshape(3, 3).max(1), rtol=1e-15)


def test_predict_keeps_the_order_of_the_sample(run, cache, tmp_path, monkeypatch):
    out, sample = tmp_path / "submission.csv", tmp_path / "sample.csv"
    assert train("predict", "--run", run, "--cache", cache, "--out", out, "--device", "cpu").exit_code == 0
    whole = pd.read_csv(out)
    shuffled = whole.sample(50, random_state=0)[["ID"]].assign(Label=0.5)
    shuffled.to_csv(sample, index=False)
    options = ["--run", run, "--cache", cache, "--out", out, "--sample", sample, "--device", "cpu"]
    assert train("predict", *options).exit_code == 0
    kept = pd.read_csv(out)
    assert kept["ID"].tolist() == shuffled["ID"].tolist()
    np.testing.assert_array_equal(kept["Label"], whole.set_index("ID").loc[kept["ID"], "Label"])
    pd.concat([shuffled, pd.DataFrame({"ID": ["ID_strange_any"], "Label": [0.5]})]).to_csv(sample, index=False)
    monkeypatch.setattr("training.cli.bodies.predict.run_predictions", None)  # the sample is checked before predicting
    assert "ID_strange_any" in refused("predict", *options)


def test_predict_refuses_a_cache_of_another_size(run, tmp_path):
    other = write_cache(tmp_path / "other.zarr", sizes=(48,)).path
    out = tmp_path / "s.csv"
    line = refused("predict", "--run", run, "--cache", other, "--out", out, "--device", "cpu")
    assert "built at 48 px; this run needs 32" in line
    assert not out.exists()


def test_bad_input_gives_a_one_line_error_and_writes_nothing(cache, tmp_path):
    out = tmp_path / "run"
    unlabelled = write_cache(tmp_path / "u.zarr", classes=()).path
    assert "no cache here" in refused("run", "--cache", tmp_path / "nowhere", "--out", out, *QUICK)
    assert "has no labels" in refused("run", "--cache", unlabelled, "--out", out, *QUICK)
    assert "this run needs 224" in refused("run", "--cache", cache, "--out", out, "--device", "cpu")
    assert "this run needs 380" in refused("run", "--cache", cache, "--out", out, "--model", "efficientnet_b3")
    assert "did you mean ema_decay" in refused("run", "--cache", cache, "--out", out, *QUICK, "--set", "ema_dekay=1")
    assert "epochs: 0 is outside" in refused("run", "--cache", cache, "--out", out, *SMALL, "--epochs", 0)
    assert not out.exists()


def test_an_unknown_model_or_missing_weights_leave_no_folder(cache, tmp_path):
    out = tmp_path / "run"
    assert "does not take images of 32 px" in refused(
        "run", "--cache", cache, "--out", out, *QUICK, "--model", "alexnet"
    )
    assert "nearest: resnet18" in refused("run", "--cache", cache, "--out", out, *QUICK, "--model", "resnet_18")
    assert "no such file" in refused("run", "--cache", cache, "--out", out, *QUICK, "--weights", tmp_path / "w.pth")
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_requesting_a_missing_gpu_is_an_error(cache, run, tmp_path):
    out = tmp_path / "run"
    assert "--device cpu" in refused("run", "--cache", cache, "--out", out, *QUICK, "--device", "cuda")
    assert "--device cpu" in refused("evaluate", "--run", run, "--device", "cuda")
    assert not out.exists()


def test_a_folder_in_use_names_resume(cache, run):
    before = (run / "log.csv").read_bytes()
    assert f"train run --resume {run}" in refused("run", "--cache", cache, "--out", run, *QUICK)
    assert (run / "log.csv").read_bytes() == before


def test_resume_of_a_finished_run_changes_nothing_and_other_settings_are_refused(run):
    before = (run / "weights.safetensors").read_bytes()
    assert train("run", "--resume", run, "--device", "cpu").exit_code == 0
    assert (run / "weights.safetensors").read_bytes() == before
    assert "learning_rate: 0.0002 there, 0.5 here" in refused("run", "--resume", run, "--lr", 0.5, "--device", "cpu")


def test_wrong_usage_has_exit_code_2(cache, tmp_path):
    assert train("run", "--cache", cache).exit_code == 2
    assert train("run", "--resume", tmp_path, "--out", tmp_path).exit_code == 2
    assert train("evaluate").exit_code == 2


def test_dry_run_reports_memory_and_time_and_leaves_nothing(cache, tmp_path):
    result = train("run", "--cache", cache, "--out", tmp_path / "run", "--dry-run", *QUICK)
    assert result.exit_code == 0, result.output
    assert "steps of 8 slices" in result.stdout
    assert "GiB at the peak" in result.stdout
    assert "the run will take about" in result.stdout
    assert not (tmp_path / "run").exists()


def test_the_report_is_rewritten(run):
    (run / "report.html").unlink()
    assert train("report", "--run", run).exit_code == 0
    assert "<html" in (run / "report.html").read_text()


def test_help_is_fast_and_documents_exit_codes():
    call = "main(['run', '--help'], standalone_mode=False)"
    code = f"import sys; from training.cli.main import main; {call}; print(sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    words, modules = output.rsplit("\n[", 1)
    assert "Exit codes: 0 done" in words
    assert not {"'torch'", "'pandas'", "'zarr'", "'numpy'", "'sklearn'"} & set(modules.split(", "))


def test_sigterm_ends_with_its_code_after_a_checkpoint(cache, tmp_path):
    path = tmp_path / "run"
    options = ["--cache", cache, "--out", path, *QUICK, "--epochs", "500", "--set", "patience_epochs=500"]
    command = commands.start(tmp_path / "said", "run", *options)
    while not list(path.glob("checkpoints/*.pt")):
        assert command.process.is_alive()
        time.sleep(0.1)
    os.kill(command.process.pid, signal.SIGTERM)
    code, _, errors = command.end()
    assert code == 143
    assert f"stopped; to continue: train run --resume {path}" in errors
    assert "epochs: 500 there, 1 here" in refused("run", "--resume", path, "--epochs", 1)


def test_torchrun_trains_with_two_processes(cache, run, tmp_path):
    path = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "training", "run", "--cache", str(cache), "--out", str(path), *QUICK]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Batch norm sees half a batch in each process, so only the values before the first step are the same.
    alone, together = (pd.read_csv(folder / "predictions_test.csv") for folder in (run, path))
    assert together["image_id"].tolist() == alone["image_id"].tolist()
    assert (path / "split.csv").read_bytes() == (run / "split.csv").read_bytes()
    assert (path / "report.html").exists()


def test_a_dry_run_of_two_processes_prints_its_estimate_once(cache, tmp_path):
    options = ["run", "--cache", cache, "--out", tmp_path / "run", *QUICK, "--dry-run"]
    ended = [command.end() for command in commands.start_several(tmp_path / "said", 2, *options)]
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "".join(out for _, out, _ in ended).count("the run will take about") == 1

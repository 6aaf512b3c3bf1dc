"""Test the settings of a head over series, and the locks of its folder."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from testkit.tiny_run import HERE, runtime, task
from training.cli.main import main
from training.errors import ConfigError, RunError
from training.run.owner import owned
from training.run.runs import open_run
from training.run.task import Task
from training.series import fit
from training.series import job as series_job
from training.series.job import begin, complete, features, head_config, open_base

OWN_LOSS = "testkit.own_code:focal"
SMALL = {"head_features": 16, "batch_size": 3, "epochs": 1}


def test_a_heads_weights_depend_on_the_users_loss(base: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    weights = []
    for name, values in (("default", {}), ("own", {"loss": OWN_LOSS})):
        run, of_slices, cache = begin(tmp_path / name, *open_base(base), SMALL | values, HERE)
        fit.fit_head(task(run, cache), of_slices)
        weights.append(run.weights.read_bytes())
    assert weights[0] != weights[1]
    with pytest.raises(ConfigError, match="--loss nowhere:loss: cannot be imported"):
        begin(tmp_path / "none", *open_base(base), SMALL | {"loss": "nowhere:loss"}, HERE)
    assert not (tmp_path / "none").exists()


def test_the_users_loss_gets_only_labelled_slices(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recording(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
        seen.append(labels)
        return logits.sum(1)

    monkeypatch.setattr("testkit.own_code.focal", recording)
    run, of_slices, cache = begin(tmp_path / "head", *open_base(base), SMALL | {"loss": OWN_LOSS}, HERE)
    train_lines = np.flatnonzero(run.subsets(cache) == "train")
    monkeypatch.setattr(type(run), "left_out", lambda self, cache: np.isin(np.arange(40), train_lines[:2]))
    fit.fit_head(task(run, cache), of_slices)
    labels = torch.cat(seen)
    assert len(labels) == len(train_lines) - 2
    assert not labels.isnan().all(1).any()


def test_settings_for_images_are_refused(base: Path) -> None:
    for name, value in (("augment", "testkit.own_code:dim"), ("mixup_alpha", 0.4), ("rotation_degrees", 5.0)):
        with pytest.raises(RunError, match=f"--set {name}: does not apply to a head"):
            head_config(open_run(base), {name: value})
    with pytest.raises(RunError, match="--set size_px: is taken from the slice model"):
        head_config(open_run(base), {"size_px": 64})


def test_a_head_is_trained_by_one_process_at_a_time(base: Path, tmp_path: Path) -> None:
    run, of_slices, cache = begin(tmp_path / "head", *open_base(base), SMALL, HERE)
    with owned(run.path):
        with pytest.raises(RunError, match="is training this run; wait for it"):
            complete(task(run, cache), of_slices)
        result = CliRunner().invoke(main, ["series", "--resume", str(run.path), "--device", "cpu"])
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert not run.weights.exists()


def test_a_second_writer_of_features_is_refused_with_the_first_ones_process(base: Path) -> None:
    command = ["features", "--run", str(base), "--device", "cpu"]
    with owned(base, "is writing its features"):
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert f"process {os.getpid()} on" in result.stderr
        assert "is writing its features; wait for it, or stop it" in result.stderr
    with owned(base):
        assert "is training this run; wait for it" in CliRunner().invoke(main, command).stderr
    assert CliRunner().invoke(main, command).exit_code == 0


def test_the_run_is_locked_while_features_are_written(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def check_lock(*_: object, **__: object) -> int:
        with pytest.raises(RunError, match="is writing its features; wait for it"), owned(base):
            pass
        seen.append(1)
        return 0

    monkeypatch.setattr(series_job, "write_features", check_lock)
    features(Task(*open_base(base), runtime(), HERE), ())
    assert seen == [1]


def test_an_unknown_tracker_is_refused_before_a_folder_is_created(base: Path, tmp_path: Path) -> None:
    command = ["series", "--run", str(base), "--out", str(tmp_path / "head"), "--logger", "wandbb", "--device", "cpu"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "--logger wandbb: no such tracker; did you mean wandb?" in result.stderr
    assert not (tmp_path / "head").exists()

"""Test that a killed or stopped run resumes from its newest checkpoint alone, with bit-identical results."""

import dataclasses
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from testkit.tiny_run import HERE, settings, spawn, task, train, train_or_resume
from training.data.cache import open_cache
from training.errors import RunError
from training.run import loop, validation
from training.run.checkpoints import Progress, list_checkpoints, load_checkpoint
from training.run.inference import Stopped
from training.run.job import resume
from training.run.loop import fit
from training.run.runs import open_run
from training.run.setup import load_slice_network, set_up, start


def same_outcome(a, b):
    assert a.weights.read_bytes() == b.weights.read_bytes()
    last = [load_checkpoint(run) for run in (a, b)]
    for name, tensor in last[0].model.items():
        assert torch.equal(tensor, last[1].model[name]), name
    assert dataclasses.replace(last[0].progress, log_bytes=0) == dataclasses.replace(last[1].progress, log_bytes=0)
    logs = [pd.read_csv(run.log).drop(columns=["images_per_s", "seconds"]) for run in (a, b)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)


# The run has about 60 fsyncs and renames: these are in its first checkpoint, in later ones, in saving the best weights,
# and between the removal of an old checkpoint and the next.
@pytest.mark.parametrize("kill_at", [3, 8, 13, 22, 35, 50])
def test_killed_at_a_write_and_resumed_equals_uninterrupted(tmp_path, cache_path, undisturbed, kill_at):
    process = spawn(tmp_path / "run", cache_path, settings(), kill_at, checkpoint_every=1)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = spawn(tmp_path / "run", cache_path, settings(), checkpoint_every=1)
    again.join()
    assert again.exitcode == 0
    same_outcome(open_run(tmp_path / "run"), undisturbed)


def test_killed_repeatedly_at_random_times_equals_uninterrupted(tmp_path, cache_path, undisturbed):
    rng = np.random.default_rng(0)
    for wait_s in [*rng.uniform(0.2, 1.5, 4), None]:
        process = spawn(tmp_path / "run", cache_path, settings(), checkpoint_every=1)
        process.join(wait_s)
        process.kill()
        process.join()
    assert process.exitcode == 0
    same_outcome(open_run(tmp_path / "run"), undisturbed)


def test_ema_accumulation_and_a_frozen_backbone_resume_too(tmp_path, cache_path):
    config = settings(ema_decay=0.5, accumulation=2, frozen_epochs=1)
    whole = train(tmp_path / "whole", cache_path, config)
    process = spawn(tmp_path / "run", cache_path, config, 40, checkpoint_every=1)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    train_or_resume(tmp_path / "run", cache_path, config, 0, {})
    same_outcome(open_run(tmp_path / "run"), whole)


def test_sigterm_writes_a_checkpoint_and_the_run_resumes(tmp_path, cache_path, undisturbed, monkeypatch):
    steps = 0
    true_step = loop.train_step

    def terminated_in_step_3(*arguments):
        nonlocal steps
        steps += 1
        true_step(*arguments)
        if steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "train_step", terminated_in_step_3)
    with pytest.raises(Stopped):
        train(tmp_path / "run", cache_path, settings())
    run = open_run(tmp_path / "run")
    assert load_checkpoint(run).progress.step == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(loop, "train_step", true_step)
    train_or_resume(run.path, cache_path, run.config, 0, {})
    same_outcome(run, undisturbed)


def test_sigterm_during_evaluation_does_not_train_the_epoch_again(tmp_path, cache_path, undisturbed, monkeypatch):
    true_score = validation.predict_slices

    def terminated(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return true_score(*arguments, **named)

    monkeypatch.setattr(validation, "predict_slices", terminated)
    with pytest.raises(Stopped):
        train(tmp_path / "run", cache_path, settings())
    run = open_run(tmp_path / "run")
    assert load_checkpoint(run).progress == Progress(
        step=5, epoch=0, batches=5, log_bytes=load_checkpoint(run).progress.log_bytes
    )
    monkeypatch.setattr(validation, "predict_slices", true_score)
    train_or_resume(run.path, cache_path, run.config, 0, {})
    same_outcome(run, undisturbed)


def test_the_newest_checkpoints_are_kept(tmp_path, cache_path):
    run = train(tmp_path / "run", cache_path, settings(), checkpoint_every=1, keep_checkpoints=2)
    assert [path.name for path in list_checkpoints(run)] == ["step_000000009.pt", "step_000000010.pt"]
    assert not list(run.path.rglob("*.partial"))


def test_a_damaged_checkpoint_is_reported(tmp_path, cache_path):
    run = train(tmp_path / "run", cache_path, settings(epochs=1))
    path = list_checkpoints(run)[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=f"{path.name}: is damaged: .*; remove it to start from the beginning"):
        fit(task(run, open_cache(cache_path)))


def test_resuming_with_other_settings_or_another_split_is_rejected(tmp_path, cache_path):
    run = train(tmp_path / "run", cache_path, settings(epochs=1))
    with pytest.raises(RunError, match="batch_size: 8 there, 16 here"):
        resume(run.path, cache_path, {"batch_size": 16})
    resume(run.path, cache_path, {"batch_size": 8})
    other = dataclasses.replace(run, config=settings(epochs=3))
    with pytest.raises(RunError, match="epochs: 1 there, 3 here"):
        load_checkpoint(other)
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, commit="0123456789abcdef"))
    with pytest.raises(RunError, match=r"commit: .* there, 0123456789abcdef here"):
        load_checkpoint(other)
    text = run.split.read_text()
    run.split.write_text(text.replace("validation", "test", 1))
    with pytest.raises(RunError, match=r"split\.csv: is not the split that the run started with"):
        fit(task(run, open_cache(cache_path)))


def test_a_model_that_needs_versions_of_weights_resumes_and_is_evaluated(tmp_path, cache_path):
    run = train(tmp_path / "run", cache_path, settings(model="mnasnet0_5", epochs=1, ema_decay=0.9))
    resumed = start(set_up(task(run, open_cache(cache_path))))
    assert resumed.progress.epoch == 1
    kept = load_slice_network(run, HERE).state_dict()
    for name, tensor in resumed.ema.state_dict().items():
        assert torch.equal(tensor, kept[name]), name

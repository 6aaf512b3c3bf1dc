"""Test checkpoints that are written in the background: their content, when they wait, and how they fail."""

import os
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, settings, task, train
from training.data.cache import open_cache
from training.errors import RunError
from training.model.weights import load_exactly, load_own
from training.run import checkpoints, loop
from training.run.checkpoints import Checkpoint, CheckpointWriter, Progress, list_checkpoints, load_checkpoint
from training.run.digests import write_atomically
from training.run.inference import Stopped
from training.run.job import begin, resume
from training.run.loop import fit
from training.run.watch import Watch


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c.zarr", patients=10, slices=5).path


@pytest.fixture
def run(tmp_path, cache_path):
    return begin(tmp_path / "run", cache_path, settings(epochs=1), HERE)[0]


@pytest.fixture
def held(monkeypatch):
    """Hold back writing until the event is set."""
    go_on, true_save = threading.Event(), checkpoints.save_checkpoint

    def later(*arguments):
        assert go_on.wait(60)
        return true_save(*arguments)

    monkeypatch.setattr(checkpoints, "save_checkpoint", later)
    yield go_on
    go_on.set()


def checkpoint_of(value, step):
    weight = torch.full((3, 2), float(value))
    state = {"state": {0: {"exp_avg": weight.clone()}}, "param_groups": [{"lr": 0.5, "params": [0]}]}
    return Checkpoint({"weight": weight}, state, None, Progress(step=step))


def test_a_checkpoint_holds_the_state_at_the_time_of_the_call(run, held):
    writer, of = CheckpointWriter(), checkpoint_of(1, step=1)
    writer.save(run, of, keep=3)
    of.model["weight"].fill_(2)
    of.optimizer["state"][0]["exp_avg"].fill_(2)
    of.optimizer["param_groups"][0]["lr"] = 2
    of.progress.step = 2
    assert not list_checkpoints(run)  # training continues in the meantime
    held.set()
    writer.close()
    found = load_checkpoint(run)
    assert (found.model["weight"] == 1).all()
    assert (found.optimizer["state"][0]["exp_avg"] == 1).all()
    assert found.optimizer["param_groups"][0] == {"lr": 0.5, "params": [0]}
    assert found.progress.step == 1


def test_memory_layouts_of_weights_are_kept(run):
    weight = torch.arange(96.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    copied, ready = checkpoints.snapshot(Checkpoint({"weight": weight}, {}, {"weight": weight}, Progress()))
    ready()
    for of in (copied.model, copied.ema):
        assert of["weight"].stride() == weight.stride()
        assert of["weight"].data_ptr() != weight.data_ptr()


class Versioned(nn.Module):
    """A module that records the version of the state it is loaded from, like modules whose tensors have changed."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(3)), []

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        self.seen.append(local_metadata.get("version"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_versions_of_modules_are_kept_with_their_tensors(run, monkeypatch):
    net, writer = nn.Sequential(Versioned()), CheckpointWriter()
    monkeypatch.setattr(Versioned, "_version", 2)
    writer.save(run, Checkpoint(net.state_dict(), {}, net.state_dict(), Progress(step=1)), keep=1, best=True)
    writer.close()
    monkeypatch.setattr(Versioned, "_version", 3)  # a later release of it
    found = load_checkpoint(run)
    load_own(net, found.model)
    load_own(net, found.ema)
    load_exactly(net, run.weights)
    load_own(net, dict(net.state_dict()))  # without a version, it is assumed to be the current one
    assert net[0].seen == [2, 2, 2, 3]


def test_a_checkpoint_waits_for_the_previous_one(run, held):
    writer, order = CheckpointWriter(), []
    writer.save(run, checkpoint_of(1, step=1), keep=3)
    second = threading.Thread(target=lambda: (writer.save(run, checkpoint_of(2, step=2), keep=3), order.append("two")))
    second.start()
    second.join(0.2)
    assert not order
    held.set()
    second.join(60)
    writer.close()
    assert [path.name for path in list_checkpoints(run)] == ["step_000000001.pt", "step_000000002.pt"]


def test_a_slow_disk_does_not_delay_a_step(run, cache_path, monkeypatch):
    """No log, weights or checkpoint of the first epoch is on disk when the second epoch takes its first step."""
    answers, true_fsync, true_step, asked = threading.Event(), os.fsync, loop.train_step, []

    def late(file):
        asked.append(file)
        assert answers.wait(20)
        true_fsync(file)

    def step(setup, learner, *arguments):
        true_step(setup, learner, *arguments)
        if learner.progress.epoch == 1 and not answers.is_set():
            assert not run.weights.exists()
            answers.set()

    monkeypatch.setattr(os, "fsync", late)
    monkeypatch.setattr(loop, "train_step", step)
    run = replace(run, config=settings(epochs=2))
    fit(task(run, open_cache(cache_path)))
    assert asked
    assert run.weights.exists()
    assert load_checkpoint(run).progress.epoch == 2


def full_disk(path, write):
    if path.suffix == ".pt":
        raise RunError(f"{path}: cannot be written (no space left)")
    write_atomically(path, write)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_line(tmp_path, cache_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "write_atomically", full_disk)
    with pytest.raises(RunError, match=r"step_000000002\.pt: cannot be written") as error:
        train(tmp_path / "run", cache_path, settings(epochs=1), checkpoint_every=2)
    assert "\n" not in str(error.value)


def test_no_checkpoint_depends_on_unwritten_weights(tmp_path, cache_path, monkeypatch):
    """After resuming, it would consider a later epoch no better, and end without the best weights."""

    def full(path, write):
        if path.name == "weights.safetensors":
            raise RunError(f"{path}: cannot be written (no space left)")
        write_atomically(path, write)

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(RunError, match=r"weights\.safetensors: cannot be written"):
        train(tmp_path / "run", cache_path, settings(epochs=1), checkpoint_every=2)
    monkeypatch.undo()
    run, cache = resume(tmp_path / "run", cache_path, {})
    assert load_checkpoint(run).progress == Progress(
        step=4, batches=4, log_bytes=load_checkpoint(run).progress.log_bytes
    )
    fit(task(run, cache))
    whole = train(tmp_path / "whole", cache_path, settings(epochs=1))
    assert run.weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize(("under_way", "raised"), [(Stopped, RunError), (ZeroDivisionError, ZeroDivisionError)])
def test_a_stopped_run_without_checkpoint_does_not_claim_to_be_resumable(
    run, cache_path, monkeypatch, under_way, raised
):
    """If the checkpoint failed; an earlier error that ended the run is reported instead."""
    monkeypatch.setattr(checkpoints, "write_atomically", full_disk)
    watch = Watch(task(run, open_cache(cache_path)), Progress(), 1)
    watch.save(checkpoint_of(1, step=1), keep=3)

    def end():
        with watch:
            raise under_way

    with pytest.raises(raised):
        end()


def test_the_end_of_a_run_waits_for_its_checkpoint(run, cache_path, held):
    threading.Timer(0.3, held.set).start()
    fit(task(run, open_cache(cache_path)))
    assert load_checkpoint(run).progress.epoch == 1


def test_a_digest_survives_another_writer_before_the_file_is_renamed(run, monkeypatch):
    """log.csv is synced while the digest of the checkpoint is recorded but the file is not renamed yet."""
    true_accept = checkpoints.write_atomically.__globals__["accept"]

    def accept_and_sync(root, path, new):
        true_accept(root, path, new)
        if path.suffix == ".pt":
            run.log.write_text("a log")
            true_accept(root, run.log, (5, "0" * 64))

    monkeypatch.setitem(checkpoints.write_atomically.__globals__, "accept", accept_and_sync)
    writer = CheckpointWriter()
    writer.save(run, checkpoint_of(1, step=1), keep=3)
    writer.close()
    path = list_checkpoints(run)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="is damaged"):
        load_checkpoint(run)

"""Test that a run in several processes gives the same as in one, that only one writes, and what each compiles."""

import contextlib
import dataclasses
import os
import socket
import sys
from pathlib import Path
from queue import Empty

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss

from testkit.tiny_run import HERE, SPAWNED, WEIGHTS, runtime, settings, task
from training.data.cache import open_cache
from training.run.apply import run_predictions
from training.run.checkpoints import Progress
from training.run.distributed import join_processes
from training.run.job import begin
from training.run.loop import epoch_batches, fit
from training.run.runs import open_run
from training.run.setup import prepare, set_up, start
from training.run.step import backward
from training.run.streams import lines_of
from training.run.task import Task

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


def changes_below(folder):
    """Return a list to which an audit hook adds everything that this process writes, moves or removes in a folder."""
    seen, root = [], str(folder)

    def note(event, arguments):
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in CHANGES) and any(str(some).startswith(root) for some in arguments[:2]):
            seen.append(str(arguments[0]))

    sys.addaudithook(note)
    return seen


def in_process(rank, count, port, path, cache_path, config, queue):
    """Act as one of `count` processes under torchrun: one batch's gradient, one training, one evaluation."""
    torch.set_num_threads(1)
    changes = changes_below(path)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with join_processes("cpu") as processes:
        run, cache = begin(path, cache_path, config, processes)
        setup = set_up(Task(run, cache, runtime(), processes))
        learner = start(setup)
        model, batches = prepare(setup, learner), epoch_batches(setup, Progress())
        for _ in range(setup.schedule.batches):
            learner.optimizer.zero_grad()
            batch, keys = next(batches)
            loss = backward(setup, learner, model, (batch, keys), synchronise=True)
            learner.progress.batches += 1
        total = processes.sum(loss).item()
        gradients = {name: p.grad.numpy().copy() for name, p in learner.net.named_parameters()}
        fit(Task(run, cache, runtime(), processes))
        everything = np.arange(cache.num_slices)
        lines, probabilities = run_predictions(Task(run, cache, runtime(), processes), everything, tta=False)
        assert rank == 0 or not changes, changes
        if processes.writes:
            queue.put((total, gradients, lines, probabilities, changes))


def run_in_processes(count, path, cache_path, config):
    queue = SPAWNED.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        SPAWNED.Process(target=in_process, args=(rank, count, port, path, cache_path, config, queue))
        for rank in range(count)
    ]
    for process in started:
        process.start()
    result = None
    while result is None and not any(process.exitcode for process in started):
        with contextlib.suppress(Empty):
            result = queue.get(timeout=0.2)
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * count
    return result


@pytest.mark.parametrize("count", [1, 2])
def test_the_network_is_compiled_in_one_process_and_in_several(tmp_path, cache_path, monkeypatch, count):
    run, cache = begin(tmp_path / "run", cache_path, settings(compile=True), HERE)
    setup = set_up(task(run, cache))
    compiled, joined = [], []
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: compiled.append((net, dynamic)) or net)
    monkeypatch.setattr("training.run.setup.DistributedDataParallel", lambda net, device_ids: joined.append(net) or net)
    learner = start(setup)
    prepare(dataclasses.replace(setup, processes=dataclasses.replace(HERE, count=count)), learner)
    assert compiled == [(learner.net, False)]
    assert joined == [learner.net] * (count - 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory, cache_path):
    """The results of a run in two processes, and its folder."""
    path = tmp_path_factory.mktemp("runs") / "2"
    return run_in_processes(2, path, cache_path, settings(epochs=1, batch_size=12)), path


def test_only_one_process_writes(two):
    """The other would fail on writing; the changes of this one show that writes are detected."""
    changes, path = two[0][4], two[1]
    assert {Path(name).relative_to(path).as_posix().removeprefix(".").removesuffix(".partial") for name in changes} >= {
        "weights.safetensors",
        "log.csv",
        "settings.json",
        "digests.json",
        "checkpoints",
    }


def test_processes_score_validation_with_the_same_norm_statistics(two, cache_path):
    """Each process has its own after a step, but the score of a slice must not depend on its process."""
    lines, probabilities = two[0][2:4]
    run, cache = open_run(two[1]), open_cache(cache_path)
    subset = lines_of(run, cache, "validation")
    labels, p = cache.labels()[subset], probabilities[np.isin(lines, subset)]
    each = [log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in range(6)]
    logged = pd.read_csv(run.log)["weighted_log_loss"].dropna().item()
    assert logged == pytest.approx(np.average(each, weights=WEIGHTS), rel=1e-6)


def test_two_and_four_processes_equal_one(tmp_path, cache_path):
    # 35 training slices make five batches of 7, which is divisible neither by two nor by four.
    config = settings(model="squeezenet1_1", dropout=0.0, epochs=1)
    loss, gradients, lines, probabilities, _ = run_in_processes(1, tmp_path / "1", cache_path, config)
    np.testing.assert_array_equal(lines, np.arange(50))
    for count in (2, 4):
        other = run_in_processes(count, tmp_path / str(count), cache_path, config)
        assert other[0] == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(other[1][name], gradient, rtol=1e-3, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(other[2], lines)
        np.testing.assert_allclose(other[3], probabilities, atol=1e-3)
        losses = [pd.read_csv(tmp_path / name / "log.csv")["loss"] for name in ("1", str(count))]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)

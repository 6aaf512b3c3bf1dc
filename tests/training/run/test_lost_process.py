"""Test the messages after a process is lost, and when the number of processes has changed."""

import dataclasses
import os
import signal
import socket
import time

import pytest
import torch

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, SPAWNED, runtime, settings, train
from training.data.cache import open_cache
from training.errors import RunError
from training.run import loop
from training.run.distributed import join_processes
from training.run.job import begin
from training.run.loop import fit
from training.run.runs import open_run
from training.run.task import Task


def with_one_that_dies(rank, count, port, path, cache_path, queue):
    """Train as one of `count` processes, of which the last is killed in its third step."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    true_step, steps = loop.train_step, 0

    def step(*arguments):
        nonlocal steps
        steps += 1
        if rank == count - 1 and steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        true_step(*arguments)

    loop.train_step = step
    try:
        with join_processes("cpu") as processes:
            run, cache = begin(path, cache_path, settings(model="squeezenet1_1"), processes)
            fit(Task(run, cache, runtime(), processes))
    except RunError as error:
        queue.put((rank, str(error)))


@pytest.mark.parametrize("count", [2, 4])
def test_a_killed_process_ends_the_others_with_a_one_line_error(tmp_path, count):
    cache_path = write_cache(tmp_path / "c.zarr", patients=10, slices=5).path
    queue = SPAWNED.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [(rank, count, port, tmp_path / "run", cache_path, queue) for rank in range(count)]
    started = [SPAWNED.Process(target=with_one_that_dies, args=some) for some in arguments]
    for process in started:
        process.start()
    started[-1].join()
    killed = time.monotonic()
    for process in started[:-1]:
        process.join(30)
    assert time.monotonic() - killed < 30
    assert [process.exitcode for process in started] == [0] * (count - 1) + [-signal.SIGKILL]
    said = dict(queue.get(timeout=5) for _ in range(count - 1))
    for rank, text in said.items():
        assert f"process {rank} of {count}: another process has ended" in text
        assert "train run --resume" in text
        assert "\n" not in text
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_run_does_not_resume_with_another_number_of_processes(tmp_path):
    cache_path = write_cache(tmp_path / "c.zarr", patients=10, slices=5).path
    run = open_run(train(tmp_path / "run", cache_path, settings(epochs=1)).path)
    two = dataclasses.replace(HERE, count=2)
    with pytest.raises(
        RunError, match=r"trained with 1 processes, and the result would differ with 2; .*--nproc-per-node 1"
    ) as error:
        fit(Task(run, open_cache(cache_path), runtime(), two))
    assert "\n" not in str(error.value)
    loop.check_same_count(run, HERE)
    fresh, _ = begin(tmp_path / "fresh", cache_path, settings(epochs=1), HERE)
    loop.check_same_count(fresh, two)  # has not taken a step yet


def test_batch_norm_on_a_single_value_gives_a_one_line_error(tmp_path):
    cache_path = write_cache(tmp_path / "c.zarr", patients=10, slices=2).path
    with pytest.raises(RunError, match=r"resnet18: at 32 px a single image leaves .* --batch-size, or --size") as error:
        train(tmp_path / "run", cache_path, settings(model="resnet18", batch_size=1, epochs=1))
    assert "\n" not in str(error.value)
    assert open_cache(cache_path).num_slices == 20

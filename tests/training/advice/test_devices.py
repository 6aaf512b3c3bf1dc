"""Test messages about devices, processes and memory that give a remedy: trigger each, and follow it."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from testkit.tiny_run import HERE, settings
from tests.training.advice.world import World
from training.errors import ConfigError, RunError
from training.run import rehearsal
from training.run.device import (
    configure_device,
    memory_error_explained,
    missing_determinism_explained,
    single_values_explained,
)
from training.run.distributed import choose_device
from training.run.loop import check_same_count
from training.run.preview import few_images
from training.run.runs import open_run
from training.run.schedule import Schedule


def _of(count: int) -> Any:
    return dataclasses.replace(HERE, count=count)


def test_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use --device cpu"):
        choose_device("cuda")
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="there are only 2; lower --nproc-per-node"):
        choose_device("cuda", local_rank=2)
    assert choose_device("cuda", local_rank=1).index == 1


def test_a_run_resumes_with_its_original_number_of_processes(world: World) -> None:
    run = open_run(world.run)
    with pytest.raises(RunError, match=r"give --nproc-per-node 1 \(1: without torchrun\)"):
        check_same_count(run, _of(2))
    check_same_count(run, _of(1))


def test_either_suggestion_gives_a_gpu_enough_images() -> None:
    gpus = dataclasses.replace(_of(4), device=torch.device("cuda"))
    [alone] = few_images(settings(batch_size=32), gpus)
    assert "--nproc-per-node" not in alone, "not even one GPU would be filled"
    [line] = few_images(settings(batch_size=128), gpus)
    found = re.search(r"give --batch-size (\d+) or more.*, or --nproc-per-node (\d+)", line)
    assert found
    assert not few_images(settings(batch_size=int(found[1])), gpus)
    assert not few_images(settings(batch_size=128), dataclasses.replace(gpus, count=int(found[2])))


def test_after_out_of_memory_half_the_batch_gives_steps_of_the_same_size(world: World) -> None:
    run = open_run(world.run)
    with pytest.raises(RunError) as refused, memory_error_explained(run.config, run.path):
        raise torch.OutOfMemoryError
    found = re.search(r"--batch-size (\d+) --set accumulation=(\d+)", str(refused.value))
    assert found
    half = dataclasses.replace(run.config, batch_size=int(found[1]), accumulation=int(found[2]))
    assert half.batch_size * half.accumulation == run.config.batch_size * run.config.accumulation
    assert Schedule(64, half).steps == Schedule(64, run.config).steps


def test_a_checkpoint_that_reloads_differently_points_to_the_disk() -> None:
    net, other = nn.Linear(2, 1), nn.Linear(2, 1)
    setup: Any = None
    learner: Any = SimpleNamespace(net=net)
    with patch.object(rehearsal, "start", lambda _: SimpleNamespace(net=other)), pytest.raises(RunError) as refused:
        rehearsal._check_reload(setup, learner)
    assert "check the disk of" in str(refused.value)
    with patch.object(rehearsal, "start", lambda _: learner):
        rehearsal._check_reload(setup, learner)


def test_deterministic_is_left_off_for_a_nondeterministic_model() -> None:
    explained = missing_determinism_explained(settings(deterministic=True))
    with pytest.raises(RunError, match="choose another model, or leave deterministic off"), explained:
        raise RuntimeError("x does not have a deterministic implementation")  # as on a GPU
    configure_device(settings(deterministic=False), torch.device("cpu"))


def test_a_single_image_per_process_gets_a_larger_batch() -> None:
    """Batch norm cannot compute the variance of one value per channel."""
    norm = nn.BatchNorm2d(2)
    with pytest.raises(RunError, match="set a larger --batch-size, or --size"), single_values_explained(settings()):
        norm(torch.zeros(1, 2, 1, 1))
    norm(torch.zeros(2, 2, 1, 1))
    norm(torch.zeros(1, 2, 2, 2))

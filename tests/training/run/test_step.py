"""Test a step: weight decay, accumulation, frozen backbones and averaging."""

import pytest
import torch
from safetensors.torch import load_file

from testkit.tiny_run import HERE, settings, task, train
from training.model.network import build_model
from training.run.distributed import Processes
from training.run.job import begin
from training.run.loop import epoch_batches
from training.run.schedule import Schedule
from training.run.setup import make_optimizer, prepare, set_up, start
from training.run.step import average, backward, seed_dropout, update


def test_norms_and_biases_are_not_decayed(tmp_path):
    net = build_model(settings(), 6)
    decayed, spared = make_optimizer(net, settings()).param_groups
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    biases = [m.bias for m in net.modules() if getattr(m, "bias", None) is not None]
    expected = {id(p) for norm in norms for p in norm.parameters()} | {id(bias) for bias in biases}
    assert {id(p) for p in spared["params"]} == expected
    assert len(decayed["params"]) + len(spared["params"]) == len(list(net.parameters()))


def test_accumulated_batches_give_the_gradient_of_one_batch(tmp_path, cache_path):
    gradients = []
    for i, (size, accumulation) in enumerate([(16, 1), (4, 4)]):
        config = settings(
            model="squeezenet1_1", batch_size=size, accumulation=accumulation, mixup_alpha=0.0, dropout=0.0
        )
        run, cache = begin(tmp_path / str(i), cache_path, config, HERE)
        setup = set_up(task(run, cache))
        learner = start(setup)
        model, batches = prepare(setup, learner), epoch_batches(setup, learner.progress)
        loss, ended = 0.0, False
        while not ended:
            ended = setup.schedule.ends_step(learner.progress.batches)
            batch, keys = next(batches)
            loss += backward(setup, learner, model, (batch, keys), synchronise=True).item()
            learner.progress.batches += 1
        gradients.append((loss, {name: p.grad for name, p in learner.net.named_parameters()}))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(gradients[1][1][name], gradient, rtol=1e-3, atol=1e-6)


def test_the_loss_of_a_step_is_summed_over_the_processes_once(tmp_path, cache_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Processes, "sum", lambda _, loss: asked.append(loss) or loss)
    run = train(tmp_path / "run", cache_path, settings(batch_size=4, accumulation=3, epochs=1))
    schedule = Schedule(35, run.config)
    assert len(asked) == schedule.steps < schedule.batches


def test_a_frozen_backbone_does_not_move(tmp_path, cache_path):
    config = settings(frozen_epochs=1, epochs=1)
    fresh = build_model(config, 6).state_dict()
    run = train(tmp_path / "run", cache_path, config)
    for name, tensor in load_file(run.weights).items():
        assert torch.equal(tensor, fresh[name]) == name.startswith("backbone."), name


def test_ema_is_the_running_mean_of_the_weights(tmp_path, cache_path):
    run, cache = begin(tmp_path / "run", cache_path, settings(ema_decay=0.75), HERE)
    setup = set_up(task(run, cache))
    learner = start(setup)
    expected = {name: p.detach().double().clone() for name, p in learner.net.named_parameters()}
    model, batches = prepare(setup, learner), epoch_batches(setup, learner.progress)
    for _ in range(3):
        batch, keys = next(batches)
        loss = backward(setup, learner, model, (batch, keys), synchronise=True)
        update(setup, learner, loss, 1e-3)
        learner.progress.batches += 1
        for name, p in learner.net.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach().double()
    assert learner.evaluated is learner.ema
    for name, p in learner.ema.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_averaging_takes_one_call_per_dtype(monkeypatch):
    """With several dtypes in a call, a GPU would copy tensors one by one."""
    calls, copy = [], torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, of: calls.append(to) or copy(to, of))
    ema, net = (torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(2)) for _ in range(2))
    net[0](torch.randn(4, 3, 2, 2))
    average(ema, net, 0.5)
    assert [len(call) for call in sorted(calls, key=len)] == [2, 4]
    assert all(len({tensor.dtype for tensor in call}) == 1 for call in calls)
    for averaged, buffer in zip(ema.buffers(), net.buffers(), strict=True):
        assert torch.equal(averaged, buffer)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_the_generators_of_a_step_are_those_of_manual_seed(monkeypatch, device):
    of_gpus, seeded = [torch.Generator() for _ in range(2)], torch.Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", of_gpus)
    before = [generator.get_state() for generator in of_gpus]
    seed_dropout(5, 7, 1, torch.device(device))
    value = torch.default_generator.initial_seed()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=seeded.manual_seed(value)))
    changed = [not torch.equal(one.get_state(), was) for one, was in zip(of_gpus, before, strict=True)]
    assert changed == [False, device == "cuda:1"]
    assert device == "cpu" or of_gpus[1].initial_seed() == value

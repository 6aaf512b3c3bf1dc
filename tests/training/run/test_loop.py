"""Test training: it learns, resumes to the bit, guards itself, and is the same in several processes."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
from queue import Empty

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import log_loss

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, SPAWNED, runtime, settings, spawn, train, train_or_resume
from training.data.cache import open_cache
from training.errors import RunError
from training.model.network import build_model
from training.run import loop
from training.run.apply import run_predictions
from training.run.checkpoints import Progress, list_checkpoints, load_checkpoint
from training.run.distributed import join_processes
from training.run.inference import Stopped, predict_batch, predict_slices
from training.run.job import begin, evaluate, resume
from training.run.loop import backward, epoch_batches, finished, fit, update
from training.run.runs import LOG_COLUMNS, open_run
from training.run.schedule import Schedule
from training.run.setup import lines_of, make_optimizer, prepare, set_up, start
from training.run.watch import Watch
from training.scores.predictions import read_predictions

WEIGHTS = np.array([1, 1, 1, 1, 1, 2])


@pytest.fixture(scope="session")
def cache_path(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c.zarr", patients=10, slices=5).path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, cache_path):
    """A run of 2 epochs of 5 steps that nobody killed."""
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    process = spawn(path, cache_path, settings(), checkpoint_every=1)
    process.join()
    assert process.exitcode == 0
    return open_run(path)


def same_outcome(a, b):
    assert a.weights.read_bytes() == b.weights.read_bytes()
    last = [load_checkpoint(run) for run in (a, b)]
    for name, tensor in last[0].model.items():
        assert torch.equal(tensor, last[1].model[name]), name
    assert dataclasses.replace(last[0].progress, log_bytes=0) == dataclasses.replace(last[1].progress, log_bytes=0)
    logs = [pd.read_csv(run.log).drop(columns=["images_per_s", "seconds"]) for run in (a, b)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)


def test_overfits_a_small_set(tmp_path):
    cache_path = write_cache(tmp_path / "c.zarr", patients=6, slices=6).path
    plain = {"mixup_alpha": 0.0, "flip_probability": 0.0, "rotation_degrees": 0.0, "noise_sigma": 0.0, "dropout": 0.0}
    config = settings(model="squeezenet1_1", epochs=40, patience_epochs=40, split_fractions=(0.6, 0.2, 0.2), **plain)
    run = train(tmp_path / "run", cache_path, config)
    cache = open_cache(cache_path)
    lines = lines_of(run, cache, "train")
    learner = start(set_up(run, cache, runtime(), HERE))
    setup = set_up(run, cache, runtime(), HERE)
    found, p = predict_slices(learner.net, setup.train, len(lines), setup.augment.normalise, HERE, bf16=False)
    np.testing.assert_array_equal(found, lines)
    labels = cache.labels()[lines]
    each = [log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in range(6)]
    assert np.average(each, weights=WEIGHTS) < 0.05


@pytest.mark.parametrize(("model", "size_px"), [("resnet50", 32), ("efficientnet_b3", 32)])
def test_the_named_models_train_a_step(tmp_path, cache_path, model, size_px):
    config = settings(model=model, size_px=size_px, batch_size=4)
    run, cache = begin(tmp_path / "run", cache_path, config, HERE)
    setup = set_up(run, cache, runtime(), HERE)
    learner = start(setup)
    before = {name: tensor.clone() for name, tensor in learner.net.named_parameters()}
    with Watch(run, cache, HERE, learner.progress, 1) as watch:
        loop.train_step(setup, learner, prepare(setup, learner), epoch_batches(setup, learner.progress), watch)
        watch.log_pending()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in learner.net.named_parameters())


def test_the_log_has_every_step_and_epoch(undisturbed):
    log = pd.read_csv(undisturbed.log)
    assert tuple(log.columns) == LOG_COLUMNS
    train_lines, validation = (log[log["split"] == side] for side in ("train", "validation"))
    assert train_lines["step"].tolist() == list(range(1, 11))
    assert train_lines["loss"].notna().all()
    assert validation["step"].tolist() == [5, 10]
    assert validation["epoch"].tolist() == [0, 1]
    schedule = Schedule(35, undisturbed.config)
    assert train_lines["learning_rate"].tolist() == [schedule.rate(step) for step in range(10)]


def test_the_best_weights_are_those_of_the_best_epoch(undisturbed):
    log = pd.read_csv(undisturbed.log)
    best = log.loc[log["weighted_log_loss"].idxmin()]
    with safe_open(undisturbed.weights, "pt") as file:
        origin = json.loads(file.metadata()["origin"])
    assert origin["epoch"] == best["epoch"]
    assert origin["commit"] == undisturbed.data.commit
    assert load_checkpoint(undisturbed).progress.best_loss == best["weighted_log_loss"]


def test_the_seed_decides_the_run(tmp_path, cache_path, undisturbed):
    same = train(tmp_path / "same", cache_path, settings(), input_threads=2, log_every=3)
    assert same.weights.read_bytes() == undisturbed.weights.read_bytes()
    other = train(tmp_path / "other", cache_path, settings(seed=1))
    assert other.weights.read_bytes() != undisturbed.weights.read_bytes()


def test_rows_do_not_decide_the_run(tmp_path, undisturbed):
    moved = write_cache(tmp_path / "c.zarr", patients=10, slices=5, row_seed=5, rows_per_shard=4).path
    run = train(tmp_path / "run", moved, settings())
    got, expected = load_file(run.weights), load_file(undisturbed.weights)  # the file names the commit, which differs
    assert all(torch.equal(got[name], expected[name]) for name in expected)


# The run has some 60 fsyncs and renames: these lie in its first checkpoint, in later ones, in the keeping of the best
# weights, and between the removal of an old checkpoint and the next.
@pytest.mark.parametrize("kill_at", [3, 8, 13, 22, 35, 50])
def test_killed_at_a_write_and_resumed_equals_undisturbed(tmp_path, cache_path, undisturbed, kill_at):
    process = spawn(tmp_path / "run", cache_path, settings(), kill_at, checkpoint_every=1)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = spawn(tmp_path / "run", cache_path, settings(), checkpoint_every=1)
    again.join()
    assert again.exitcode == 0
    same_outcome(open_run(tmp_path / "run"), undisturbed)


def test_killed_again_and_again_at_random_times_equals_undisturbed(tmp_path, cache_path, undisturbed):
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


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on(tmp_path, cache_path, undisturbed, monkeypatch):
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
    true_score = loop.predict_slices

    def terminated(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return true_score(*arguments, **named)

    monkeypatch.setattr(loop, "predict_slices", terminated)
    with pytest.raises(Stopped):
        train(tmp_path / "run", cache_path, settings())
    run = open_run(tmp_path / "run")
    assert load_checkpoint(run).progress == Progress(
        step=5, epoch=0, batches=5, log_bytes=load_checkpoint(run).progress.log_bytes
    )
    monkeypatch.setattr(loop, "predict_slices", true_score)
    train_or_resume(run.path, cache_path, run.config, 0, {})
    same_outcome(run, undisturbed)


def test_the_newest_checkpoints_are_kept(tmp_path, cache_path):
    run = train(tmp_path / "run", cache_path, settings(), checkpoint_every=1, keep_checkpoints=2)
    assert [path.name for path in list_checkpoints(run)] == ["step_000000009.pt", "step_000000010.pt"]
    assert not list(run.path.rglob("*.partial"))


def test_a_damaged_checkpoint_is_named(tmp_path, cache_path):
    run = train(tmp_path / "run", cache_path, settings(epochs=1))
    path = list_checkpoints(run)[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=f"{path.name}: is damaged: .*; remove it to begin again from the start"):
        fit(run, open_cache(cache_path), runtime(), HERE)


def test_resuming_with_other_settings_or_another_split_is_refused(tmp_path, cache_path):
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
    with pytest.raises(RunError, match=r"split\.csv: is not the split that the run began with"):
        fit(run, open_cache(cache_path), runtime(), HERE)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights_and_names_its_slices(tmp_path, cache_path, monkeypatch, where):
    run, cache = begin(tmp_path / "run", cache_path, settings(), HERE)
    setup = set_up(run, cache, runtime(log_every=5), HERE)
    learner = start(setup)
    seen, before = [], {}
    true_losses = setup.loss

    def poisoned(logits, labels, weights):
        losses = true_losses(logits, labels, weights)
        if len(seen) == 4:
            before.update({name: tensor.clone() for name, tensor in learner.net.named_parameters()})
            if where == "loss":
                return losses * torch.inf
            logits.register_hook(lambda gradient: gradient * torch.nan)
        return losses

    setup = dataclasses.replace(setup, loss=poisoned)
    with Watch(run, cache, HERE, learner.progress, 10) as watch:
        true_saw = watch.saw_batch

        def saw(lines, images):
            seen.append(lines.clone())
            true_saw(lines, images)

        monkeypatch.setattr(watch, "saw_batch", saw)
        with pytest.raises(RunError, match=r"step 4: .*not finite"):
            loop.train_epoch(setup, learner, watch, lambda: False)
    # The look came a step later (the one before it at the end of the warm-up); neither step has touched the weights.
    assert len(seen) == 5
    for name, tensor in learner.net.named_parameters():
        assert torch.equal(tensor, before[name]), name
    table = pd.read_csv(run.path / "nonfinite.csv")
    assert table["image_id"].tolist() == cache.table["image_id"].iloc[seen[3].numpy()].tolist()
    assert not list_checkpoints(run)


def test_out_of_memory_says_what_to_set(tmp_path, cache_path, monkeypatch):
    def exhausted(*_arguments, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmany\nlines")

    monkeypatch.setattr(loop, "backward", exhausted)
    with pytest.raises(RunError, match=r"batch size of 8 .* --batch-size 4 --set accumulation=2"):
        train(tmp_path / "run", cache_path, settings())


def test_validation_that_no_longer_improves_ends_the_run():
    config = settings(epochs=10, patience_epochs=2)
    assert not finished(Progress(epoch=0), config)
    assert not finished(Progress(epoch=3, best_epoch=1), config)
    assert finished(Progress(epoch=4, best_epoch=1), config)
    assert finished(Progress(epoch=10, best_epoch=9), config)


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
        setup = set_up(run, cache, runtime(), HERE)
        learner = start(setup)
        model, batches = prepare(setup, learner), epoch_batches(setup, learner.progress)
        loss, ended = 0.0, False
        while not ended:
            ended = setup.schedule.ends_step(learner.progress.batches)
            batch, keys = next(batches)
            loss += backward(setup, learner, model, batch, keys, synchronise=True).item()
            learner.progress.batches += 1
        gradients.append((loss, {name: p.grad for name, p in learner.net.named_parameters()}))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(gradients[1][1][name], gradient, rtol=1e-3, atol=1e-6)


def test_a_frozen_backbone_does_not_move(tmp_path, cache_path):
    config = settings(frozen_epochs=1, epochs=1)
    fresh = build_model(config, 6).state_dict()
    run = train(tmp_path / "run", cache_path, config)
    for name, tensor in load_file(run.weights).items():
        assert torch.equal(tensor, fresh[name]) == name.startswith("backbone."), name


def test_ema_is_the_running_mean_of_the_weights(tmp_path, cache_path):
    run, cache = begin(tmp_path / "run", cache_path, settings(ema_decay=0.75), HERE)
    setup = set_up(run, cache, runtime(), HERE)
    learner = start(setup)
    expected = {name: p.detach().double().clone() for name, p in learner.net.named_parameters()}
    model, batches = prepare(setup, learner), epoch_batches(setup, learner.progress)
    for _ in range(3):
        batch, keys = next(batches)
        loss = backward(setup, learner, model, batch, keys, synchronise=True)
        update(setup, learner, loss, 1e-3)
        learner.progress.batches += 1
        for name, p in learner.net.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach().double()
    assert learner.evaluated is learner.ema
    for name, p in learner.ema.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_tta_is_the_mean_of_the_views(undisturbed, cache_path):
    cache = open_cache(cache_path)
    setup = set_up(undisturbed, cache, runtime(), HERE)
    net = start(setup).net.eval()
    batch, _ = next(epoch_batches(setup, Progress()))
    grey = batch.images.float() / 255

    def probabilities(images):
        with torch.inference_mode():
            return torch.sigmoid(net(setup.augment.normalise(images), batch.z_norm).double())

    upright = np.ones(len(grey), np.float32)
    turned = [loop_sample(grey, upright, np.deg2rad(degrees) * upright) for degrees in (-10, 10)]
    expected = sum(probabilities(view) for view in (grey, grey.flip(3), grey.flip(2), *turned)) / 5
    with torch.inference_mode():
        plain = predict_batch(net, batch.images, batch.z_norm, setup.augment.normalise, bf16=False, tta=False).mean(1)
        averaged = predict_batch(net, batch.images, batch.z_norm, setup.augment.normalise, bf16=False, tta=True).mean(1)
    torch.testing.assert_close(plain, probabilities(grey), atol=1e-6, rtol=0)
    torch.testing.assert_close(averaged, expected, atol=1e-6, rtol=0)
    assert not torch.equal(plain, averaged)


def loop_sample(grey, flip, angle):
    from training.model.augment import sample

    return sample(grey, flip, angle.astype(np.float32))


def test_evaluation_writes_what_scores_to_the_same(undisturbed, cache_path):
    scores = evaluate(undisturbed, open_cache(cache_path), "test", runtime(), HERE, tta=False)
    known = read_predictions(undisturbed.path / "predictions_test.csv")
    labels, p = known.labels, known.probabilities
    each = [log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in range(6)]
    assert scores["weighted_log_loss"] == pytest.approx(np.average(each, weights=WEIGHTS), abs=1e-12)
    split = pd.read_csv(undisturbed.split).set_index("patient_id")["split"]
    assert (split[known.slices["patient_id"]] == "test").all()


def in_process(rank, count, port, path, cache_path, config, queue):
    """Be one of `count` processes as torchrun starts them: one batch's gradient, one training, one evaluation."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with join_processes("cpu") as processes:
        run, cache = begin(path, cache_path, config, processes)
        setup = set_up(run, cache, runtime(), processes)
        learner = start(setup)
        model, batches = prepare(setup, learner), epoch_batches(setup, Progress())
        for _ in range(setup.schedule.batches):
            learner.optimizer.zero_grad()
            batch, keys = next(batches)
            loss = backward(setup, learner, model, batch, keys, synchronise=True)
            learner.progress.batches += 1
        total = processes.add_up(loss).item()
        gradients = {name: p.grad.numpy().copy() for name, p in learner.net.named_parameters()}
        fit(run, cache, runtime(), processes)
        everything = np.arange(cache.num_slices)
        lines, probabilities = run_predictions(run, cache, everything, runtime(), processes, tta=False)
        if processes.writes:
            queue.put((total, gradients, lines, probabilities))


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
    setup = set_up(run, cache, runtime(), HERE)
    compiled, joined = [], []
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: compiled.append((net, dynamic)) or net)
    monkeypatch.setattr("training.run.setup.DistributedDataParallel", lambda net, device_ids: joined.append(net) or net)
    learner = start(setup)
    prepare(dataclasses.replace(setup, processes=dataclasses.replace(HERE, count=count)), learner)
    assert compiled == [(learner.net, False)]
    assert joined == [learner.net] * (count - 1)


def test_processes_score_validation_with_the_same_statistics_of_norms(tmp_path, cache_path):
    """Each process has its own after a step, and a slice's score must not depend on who looks at it."""
    _, _, lines, probabilities = run_in_processes(2, tmp_path / "2", cache_path, settings(epochs=1, batch_size=12))
    run, cache = open_run(tmp_path / "2"), open_cache(cache_path)
    side = lines_of(run, cache, "validation")
    labels, p = cache.labels()[side], probabilities[np.isin(lines, side)]
    each = [log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in range(6)]
    logged = pd.read_csv(run.log)["weighted_log_loss"].dropna().item()
    assert logged == pytest.approx(np.average(each, weights=WEIGHTS), rel=1e-6)


def test_two_and_four_processes_equal_one(tmp_path, cache_path):
    # 35 training slices make five batches of 7, which divide neither by two nor by four.
    config = settings(model="squeezenet1_1", dropout=0.0, epochs=1)
    loss, gradients, lines, probabilities = run_in_processes(1, tmp_path / "1", cache_path, config)
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

"""Test training: it learns, logs, keeps and scores its best weights, and depends only on the seed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import log_loss

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, WEIGHTS, settings, task, train
from training.data.cache import open_cache
from training.run import loop
from training.run.checkpoints import Progress, load_checkpoint
from training.run.inference import predict_batch, predict_slices
from training.run.job import begin, evaluate
from training.run.log import LOG_COLUMNS
from training.run.loop import epoch_batches, finished
from training.run.schedule import Schedule
from training.run.setup import prepare, set_up, start
from training.run.streams import lines_of
from training.run.watch import Watch
from training.scores.predictions import read_predictions


def test_a_small_set_can_be_overfitted(tmp_path):
    cache_path = write_cache(tmp_path / "c.zarr", patients=6, slices=6).path
    plain = {"mixup_alpha": 0.0, "flip_probability": 0.0, "rotation_degrees": 0.0, "noise_sigma": 0.0, "dropout": 0.0}
    config = settings(model="squeezenet1_1", epochs=40, patience_epochs=40, split_fractions=(0.6, 0.2, 0.2), **plain)
    run = train(tmp_path / "run", cache_path, config)
    cache = open_cache(cache_path)
    lines = lines_of(run, cache, "train")
    learner = start(set_up(task(run, cache)))
    setup = set_up(task(run, cache))
    found, p = predict_slices(setup, learner.net, setup.train)
    np.testing.assert_array_equal(found, lines)
    labels = cache.labels()[lines]
    each = [log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in range(6)]
    assert np.average(each, weights=WEIGHTS) < 0.05


@pytest.mark.parametrize(("model", "size_px"), [("resnet50", 32), ("efficientnet_b3", 32)])
def test_documented_models_can_train_a_step(tmp_path, cache_path, model, size_px):
    config = settings(model=model, size_px=size_px, batch_size=4)
    run, cache = begin(tmp_path / "run", cache_path, config, HERE)
    setup = set_up(task(run, cache))
    learner = start(setup)
    before = {name: tensor.clone() for name, tensor in learner.net.named_parameters()}
    with Watch(setup, learner.progress, 1) as watch:
        loop.train_step(setup, learner, prepare(setup, learner), epoch_batches(setup, learner.progress), watch)
        watch.log_pending()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in learner.net.named_parameters())


def test_the_log_has_every_step_and_epoch(undisturbed):
    # The parser of pandas 2 gets the last bit of some numbers wrong; Python's is exact.
    log = pd.read_csv(undisturbed.log, converters={"learning_rate": lambda text: float(text or "nan")})
    assert tuple(log.columns) == LOG_COLUMNS
    train_lines, validation = (log[log["split"] == subset] for subset in ("train", "validation"))
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


def test_the_run_depends_on_the_seed(tmp_path, cache_path, undisturbed):
    same = train(tmp_path / "same", cache_path, settings(), input_threads=2, log_every=3)
    assert same.weights.read_bytes() == undisturbed.weights.read_bytes()
    other = train(tmp_path / "other", cache_path, settings(seed=1))
    assert other.weights.read_bytes() != undisturbed.weights.read_bytes()


def test_the_run_does_not_depend_on_rows(tmp_path, undisturbed):
    moved = write_cache(tmp_path / "c.zarr", patients=10, slices=5, row_seed=5, rows_per_shard=4).path
    run = train(tmp_path / "run", moved, settings())
    got, expected = load_file(run.weights), load_file(undisturbed.weights)  # only the commit in the metadata differs
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_validation_that_no_longer_improves_ends_the_run():
    config = settings(epochs=10, patience_epochs=2)
    assert not finished(Progress(epoch=0), config)
    assert not finished(Progress(epoch=3, best_epoch=1), config)
    assert finished(Progress(epoch=4, best_epoch=1), config)
    assert finished(Progress(epoch=10, best_epoch=9), config)


def test_tta_is_the_mean_of_the_views(undisturbed, cache_path):
    cache = open_cache(cache_path)
    setup = set_up(task(undisturbed, cache))
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
        plain = predict_batch(net, batch, setup.augment.normalise, bf16=False, tta=False).mean(1)
        averaged = predict_batch(net, batch, setup.augment.normalise, bf16=False, tta=True).mean(1)
    torch.testing.assert_close(plain, probabilities(grey), atol=1e-6, rtol=0)
    torch.testing.assert_close(averaged, expected, atol=1e-6, rtol=0)
    assert not torch.equal(plain, averaged)


def loop_sample(grey, flip, angle):
    from training.model.augment import sample

    return sample(grey, flip, angle.astype(np.float32))


def test_evaluation_writes_predictions_that_give_its_scores(undisturbed, cache_path):
    scores = evaluate(task(undisturbed, open_cache(cache_path)), "test", tta=False)
    known = read_predictions(undisturbed.path / "predictions_test.csv")
    labels, p = known.labels, known.probabilities
    each = [log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in range(6)]
    assert scores["weighted_log_loss"] == pytest.approx(np.average(each, weights=WEIGHTS), abs=1e-12)
    split = pd.read_csv(undisturbed.split).set_index("patient_id")["split"]
    assert (split[known.slices["patient_id"]] == "test").all()

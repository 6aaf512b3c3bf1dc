"""Test what a run logs to TensorBoard: its first images after augmentation, learning rates, norms, images/s."""

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from testkit.fake_cache import write_cache
from testkit.tiny_run import settings, task, train
from training.data.cache import open_cache
from training.run.checkpoints import Progress
from training.run.loop import first_images
from training.run.setup import set_up


def test_tensorboard_has_a_first_batch_and_every_figure_of_a_step(tmp_path):
    cache_path = write_cache(tmp_path / "c.zarr", patients=10, slices=5).path
    config = settings(epochs=1, noise_sigma=0.0)
    run = train(tmp_path / "run", cache_path, config, loggers=("tensorboard",))
    plain = train(tmp_path / "plain", cache_path, config, loggers=())
    assert run.weights.read_bytes() == plain.weights.read_bytes()  # logging does not change the result
    kept = EventAccumulator(str(run.path / "tensorboard"))
    kept.Reload()
    assert {"loss", "learning_rate", "gradient_norm", "images_per_s"} <= set(kept.Tags()["scalars"])
    assert kept.Tags()["images"]
    setup = set_up(task(run, open_cache(cache_path)))
    shown = first_images(setup, Progress())
    assert shown.shape == (7, 3, 32, 32)
    (batch, *_) = setup.train.epoch(config.seed, 0, batches=setup.schedule.batches)
    grey = setup.augment(batch.images, batch.keys.numpy().view(np.uint64), 0) * setup.augment.normalise.std
    expected = ((grey + setup.augment.normalise.mean) * 255).round()
    assert np.abs(shown - expected.numpy()).max() <= 1
    assert not torch.equal(torch.from_numpy(shown), batch.images)

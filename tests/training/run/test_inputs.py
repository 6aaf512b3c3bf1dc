"""Test the network's inputs for a batch, and that nothing but the batch is sent to the device for them."""

import numpy as np
import pytest
import torch

from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, settings, task
from training.model.augment import mix
from training.model.draws import draw_mixup
from training.run.checkpoints import Progress
from training.run.inputs import make_inputs
from training.run.job import begin
from training.run.loop import epoch_batches
from training.run.setup import set_up


@pytest.mark.parametrize("threads", [0, 2])
def test_random_numbers_come_with_the_batch(tmp_path, monkeypatch, threads):
    cache_path = write_cache(tmp_path / "c.zarr", patients=10, slices=5).path
    run, cache = begin(tmp_path / "run", cache_path, settings(mixup_alpha=0.4), HERE)
    setup = set_up(task(run, cache, input_threads=threads))
    in_epoch = setup.schedule.batches
    for number in (1, in_epoch + 2):
        epoch, skipped = divmod(number, in_epoch)
        batch, keys = next(epoch_batches(setup, Progress(epoch=epoch, batches=skipped)))
        shares, partners = draw_mixup(run.config, number, len(keys))
        own = setup.augment(batch.images, keys, epoch), batch.z_norm, batch.labels
        expected = [mix(part, part[partners], torch.from_numpy(shares)) for part in own]
        with monkeypatch.context() as patched:
            for name in ("from_numpy", "tensor", "as_tensor"):
                patched.setattr(torch, name, lambda *_, **__: pytest.fail("goes to the device by itself"))
            got = make_inputs(setup, batch, keys, number)
        for mine, right in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine.numpy(), right.numpy())

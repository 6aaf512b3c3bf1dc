"""Make of a batch what the network sees: augmented, mixed with its partners, and what is random copied at once."""

import numpy as np
import torch
from torch import Tensor

from training.data.stream import Batch
from training.model.augment import DRAWN, draw_mixup, mix, to_device
from training.run.distributed import Exchange, Processes
from training.run.setup import Setup

Inputs = tuple[Tensor, Tensor, Tensor]


def make_inputs(setup: Setup, batch: Batch, keys: np.ndarray, number: int) -> Inputs:
    """Return what the network sees of a batch: images (B, C, S, S) channels_last, z_norm (B,), labels (B, K).

    All that is drawn on the host goes to the device in one copy.

    Args:
        keys: (B,) uint64 on the host.
        number: of the batch in the run, from 0.
    """
    config, processes = setup.config, setup.processes
    epoch, in_epoch = divmod(number, setup.schedule.batches)
    drawn = setup.augment.values(keys, epoch, batch.images.shape)
    if not config.mixup_alpha:
        images = setup.augment(batch.images, keys, epoch, to_device(drawn, setup.device))
        return images, batch.z_norm, batch.labels
    shares, partners = draw_mixup(config, number, setup.schedule.images_in_batch(in_epoch))
    plan = processes.plan(partners)
    # Rows are counted exactly in float32 up to 2**24.
    columns = np.column_stack([drawn, processes.part(shares), plan.order, plan.places]).astype(np.float32)
    values = to_device(columns, setup.device)
    images = setup.augment(batch.images, keys, epoch, values[:, :DRAWN])
    return mix_with_partners(processes, plan, (images, batch.z_norm, batch.labels), values[:, DRAWN:])


def mix_with_partners(processes: Processes, plan: Exchange, own: Inputs, values: Tensor) -> Inputs:
    """Mix each image, position and labels with those of its partner, which may be another process's.

    Args:
        values: (B, 3) float32 on the device: share, and the plan's order and places.
    """
    images, z_norm, labels = own
    share, order, places = values[:, 0], values[:, 1].long(), values[:, 2].long()
    pixels = images.permute(0, 2, 3, 1)  # channels_last images lie in memory so
    other_pixels = processes.exchange(pixels, plan, order, places)
    other_facts = processes.exchange(torch.column_stack([z_norm, labels]), plan, order, places)
    return (
        mix(pixels, other_pixels, share).permute(0, 3, 1, 2),
        mix(z_norm, other_facts[:, 0], share),
        mix(labels, other_facts[:, 1:], share),
    )

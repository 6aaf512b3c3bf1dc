"""Prepare a batch for the network: augment it, and mix it with its partners."""

import numpy as np
import torch
from torch import Tensor

from training.data.batches import Batch
from training.model.augment import mix
from training.model.draws import DRAWN
from training.run.distributed import Exchange, Processes
from training.run.drawing import mixing
from training.run.setup import Setup

Inputs = tuple[Tensor, Tensor, Tensor]


def make_inputs(setup: Setup, batch: Batch, keys: np.ndarray, number: int) -> Inputs:
    """Return the network's inputs for a batch: images (B, C, S, S) channels_last, z_norm (B,), labels (B, K).

    The random numbers drawn on the host are already on the device, as part of the batch.

    Args:
        keys: (B,) uint64 on the host.
        number: of the batch in the run, from 0.
    """
    values = batch.drawn
    images = setup.augment(batch.images, keys, number // setup.schedule.batches, values[:, :DRAWN])
    if not setup.config.mixup_alpha:
        return images, batch.z_norm, batch.labels
    alone = setup.processes.control is None  # its own partners came with the batch
    plan = None if alone else mixing(setup.config, setup.schedule, setup.processes, number)[1]
    return mix_with_partners(setup.processes, plan, (images, batch.z_norm, batch.labels), values[:, DRAWN:])


def mix_with_partners(processes: Processes, plan: Exchange | None, own: Inputs, values: Tensor) -> Inputs:
    """Mix each image, position and labels with those of its partner, which may be in another process.

    Args:
        plan: of the exchange with other processes, if there are any.
        values: (B, 3) float32 on the device: share, and the plan's order and places.
    """
    images, z_norm, labels = own
    share, order, places = values[:, 0], values[:, 1].long(), values[:, 2].long()
    pixels = images.permute(0, 2, 3, 1)  # the memory layout of channels_last
    other_pixels = processes.exchange(pixels, plan, order, places)
    other_facts = processes.exchange(torch.column_stack([z_norm, labels]), plan, order, places)
    return (
        mix(pixels, other_pixels, share).permute(0, 3, 1, 2),
        mix(z_norm, other_facts[:, 0], share),
        mix(labels, other_facts[:, 1:], share),
    )

"""Draw the random numbers of a training batch on the host, to be sent to the device with its images."""

import math

import numpy as np

from training.data.stream import Draw
from training.model.draws import DRAWN, augmentation_values, draw_mixup
from training.run.config import TrainConfig
from training.run.distributed import Exchange, Processes
from training.run.schedule import Schedule

MIXED = 3  # numbers per image for mixup: its share, and its order and place in the exchange


def drawing(config: TrainConfig, schedule: Schedule, processes: Processes, shape: tuple[int, int, int]) -> Draw:
    """Return the `Draw` for images of shape (C, S, S): the columns of `augmentation_values`, and those of mixup.

    The columns of mixup are the share of this process's image, and the order and places of its exchange with other
    processes; float32 represents these row numbers exactly up to 2**24.
    """
    length = math.prod(shape)

    def of_batch(epoch: int, number: int, keys: np.ndarray) -> np.ndarray:
        values = augmentation_values(config, epoch, keys, length)
        if not config.mixup_alpha:
            return values
        shares, plan = mixing(config, schedule, processes, epoch * schedule.batches + number)
        return np.column_stack([values, processes.part(shares), plan.order, plan.places]).astype(np.float32)

    return Draw(DRAWN + MIXED * bool(config.mixup_alpha), of_batch)


def mixing(config: TrainConfig, schedule: Schedule, processes: Processes, number: int) -> tuple[np.ndarray, Exchange]:
    """Return the mixup shares of a global batch's images, (n,) float32, and the exchange of their partners.

    Args:
        number: of the batch in the run, from 0.
    """
    shares, partners = draw_mixup(config, number, schedule.images_in_batch(number % schedule.batches))
    return shares, processes.plan(partners)

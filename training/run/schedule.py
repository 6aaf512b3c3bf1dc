"""The schedule of a run: which batches make up each step, and its learning rate."""

import math
from dataclasses import dataclass

from training.run.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Batches, steps and epochs of a run over `num_slices` training slices.

    An epoch is divided evenly: if the number of slices is not a multiple of the batch size, all batches are slightly
    smaller, and their sizes differ by at most one. A short last batch would shift the statistics of batch norm just
    before validation, take a full step on few images, and need to be compiled, tuned and distributed separately.
    """

    num_slices: int
    config: TrainConfig

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_slices // self.config.batch_size)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.batches // self.config.accumulation)

    @property
    def total_steps(self) -> int:
        return self.steps * self.config.epochs

    def images_in_batch(self, batch: int) -> int:
        """Number of images in a batch of the epoch, over all processes."""
        part = self.part(batch)
        return part.stop - part.start

    def images_in_step(self, batch: int) -> int:
        """Number of images in the step that a batch belongs to."""
        step = batch * self.steps // self.batches
        return self.part(self._opens(step + 1) - 1).stop - self.part(self._opens(step)).start

    def ends_step(self, batch: int) -> bool:
        """Return whether the weights are updated after this batch."""
        return (batch + 1) * self.steps // self.batches > batch * self.steps // self.batches

    def _opens(self, step: int) -> int:
        """Return the first batch of a step in the epoch: batches are divided evenly among the steps too."""
        return -(-step * self.batches // self.steps)

    def part(self, batch: int) -> slice:
        """Return the range of a batch in the epoch's order, as `Stream.epoch` divides it."""
        return slice(batch * self.num_slices // self.batches, (batch + 1) * self.num_slices // self.batches)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: a linear rise, then half a cosine.

        Source: Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation 5.
        """
        config = self.config
        warmup = math.ceil(config.warmup_fraction * self.total_steps)
        if step < warmup:
            return config.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.total_steps - warmup)
        low = config.learning_rate * config.final_rate_fraction
        return low + (config.learning_rate - low) * (1 + math.cos(math.pi * done)) / 2

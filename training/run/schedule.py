"""This file counts: which batch ends which step of a run, and at which learning rate."""

import math
from dataclasses import dataclass

from training.run.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Batches, steps and epochs of a run over `num_slices` training slices.

    The last batch of an epoch is short where the slices do not divide evenly, and so is its last step.
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
        """Images in the epoch's batch of that number, over all processes."""
        return min(self.config.batch_size, self.num_slices - batch * self.config.batch_size)

    def images_in_step(self, batch: int) -> int:
        """Images in the step that the batch belongs to."""
        per_step = self.config.batch_size * self.config.accumulation
        first = batch // self.config.accumulation * per_step
        return min(per_step, self.num_slices - first)

    def ends_step(self, batch: int) -> bool:
        """Whether the weights are updated after this batch."""
        return (batch + 1) % self.config.accumulation == 0 or batch + 1 == self.batches

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

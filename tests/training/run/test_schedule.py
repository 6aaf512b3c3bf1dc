"""Test how batches are grouped into steps, and the learning rate."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.run.config import TrainConfig
from training.run.schedule import Schedule


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))
def test_steps_partition_the_epoch(num_slices, batch_size, accumulation):
    schedule = Schedule(num_slices, TrainConfig(batch_size=batch_size, accumulation=accumulation))
    sizes = [schedule.images_in_batch(batch) for batch in range(schedule.batches)]
    assert sum(sizes) == num_slices
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size
    assert schedule.batches == 1 or min(sizes) >= batch_size / 2
    steps, images, in_step = 0, 0, 0
    for batch, size in enumerate(sizes):
        images, in_step = images + size, in_step + 1
        if schedule.ends_step(batch):
            assert schedule.images_in_step(batch) == images
            assert accumulation / 2 <= in_step <= accumulation or schedule.steps == 1
            steps, images, in_step = steps + 1, 0, 0
    assert images == 0
    assert steps == schedule.steps


def test_rate_rises_then_falls_along_a_cosine():
    config = TrainConfig(epochs=10, batch_size=1, learning_rate=1.0, warmup_fraction=0.1, final_rate_fraction=0.01)
    schedule = Schedule(10, config)
    rates = [schedule.rate(step) for step in range(schedule.total_steps)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.01 + 0.99 / 2)
    assert schedule.rate(schedule.total_steps) == pytest.approx(0.01)


def test_without_warm_up_the_rate_starts_at_its_peak():
    config = TrainConfig(epochs=1, batch_size=1, learning_rate=0.5, warmup_fraction=0)
    assert Schedule(4, config).rate(0) == 0.5

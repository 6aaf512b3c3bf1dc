"""Test that each process receives the partners that it requested, and that nothing else is sent."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from testkit.tiny_run import HERE


@given(st.integers(1, 40), st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_row_reaches_its_recipient_and_is_sent_once(size, count, random):
    wanted = np.array(random.sample(range(size), size))
    rows = np.arange(size) * 10
    of = [dataclasses.replace(HERE, rank=rank, count=count) for rank in range(count)]
    plans, own = [each.plan(wanted) for each in of], [each.part(rows) for each in of]
    # all_to_all by hand: process s sends its d-th section to process d.
    stretches = [np.split(own[s][plans[s].order], np.cumsum(plans[s].sends)[:-1]) for s in range(count)]
    for d, plan in enumerate(plans):
        assert [len(stretches[s][d]) for s in range(count)] == plan.receives
        received = np.concatenate([stretches[s][d] for s in range(count)])
        np.testing.assert_array_equal(received[plan.places], of[d].part(rows[wanted]))
    assert sum(sum(plan.sends) for plan in plans) == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_process_uses_its_own_rows(dtype):
    rows, wanted = torch.arange(12).view(6, 2).to(dtype), np.array([3, 0, 5, 1, 2, 4])
    plan = HERE.plan(wanted)
    order, places = torch.from_numpy(plan.order), torch.from_numpy(plan.places)
    for known in (plan, None):
        assert torch.equal(HERE.exchange(rows, known, order, places), rows[torch.from_numpy(wanted)])

"""Bring batches to a device: a GPU gets each one while it works on the one before."""

from collections.abc import Generator, Iterable
from functools import cache as cached

import torch

from training.data.batches import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Yield batches on a device; a GPU gets each one while it works on the one before."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copying = _copying(device)
    before: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copied = batch.to(device), copying.record_event()
        if before is not None:
            yield _hand_over(*before, device)
        before = copied
    if before is not None:
        yield _hand_over(*before, device)


@cached
def _copying(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a device for copies: the allocator keeps blocks of its own for every stream."""
    return torch.cuda.Stream(device)


def _hand_over(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """Make the current CUDA stream wait for a copy, and keep the copy's memory until that stream has used it."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    batch.record_stream(current)
    return batch

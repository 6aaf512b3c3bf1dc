"""Copy batches to a device, on a GPU while it computes on the previous one."""

from collections.abc import Generator, Iterable
from functools import cache as cached

import torch

from training.data.batches import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Yield batches on a device; on a GPU, each is copied while the previous one is in use."""
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
    """Return the device's stream for copies, the same each time: the allocator keeps separate blocks per stream."""
    return torch.cuda.Stream(device)


def _hand_over(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """Make the current CUDA stream wait for the copy, and keep its memory until that stream has used it."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    batch.record_stream(current)
    return batch

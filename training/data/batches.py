"""One batch in memory: all that belongs to it in one stretch of bytes, which goes to a device in one copy."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.data.memory import Memory

ALIGNED = 256  # bytes: each part begins where the widest loads of a GPU may begin


class Guard:
    """Keeps memory from being filled again while a GPU still copies from it."""

    def __init__(self) -> None:
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()


@dataclass(frozen=True)
class Layout:
    """Where the parts of a batch lie in its bytes: the small ones first, each with room for a full batch.

    The images are last, so that a batch of fewer slices is one stretch too.

    Attributes:
        batch_size: slices at most.
        image_shape: (C, S, S).
        classes: K, labels of a slice.
        drawn: D, numbers of a slice that its stream's `Draw` gives.
    """

    batch_size: int
    image_shape: tuple[int, int, int]
    classes: int
    drawn: int

    def parts(self) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """Return type and shape of what a slice has, in the order in memory: as `Batch.of` names them."""
        return (
            (torch.int64, ()),
            (torch.int64, ()),
            (torch.float32, ()),
            (torch.float32, (self.classes,)),
            (torch.float32, (self.drawn,)),
            (torch.uint8, self.image_shape),
        )

    def offsets(self) -> list[int]:
        """Return where each part begins, in bytes."""
        begins = [0]
        for dtype, shape in self.parts()[:-1]:
            size = dtype.itemsize * math.prod(shape) * self.batch_size
            begins.append(begins[-1] + -(-size // ALIGNED) * ALIGNED)
        return begins

    def size(self, count: int) -> int:
        """Return the bytes from the first part to the end of the images of `count` slices."""
        return self.offsets()[-1] + count * math.prod(self.image_shape)

    def unpack(self, packed: Tensor, count: int) -> list[Tensor]:
        """Return each part of the first `count` slices as a view of the bytes, (size(count),) uint8."""
        views = []
        for begin, (dtype, shape) in zip(self.offsets(), self.parts(), strict=True):
            part = packed[begin : begin + dtype.itemsize * math.prod(shape) * count]
            views.append(part.view(dtype).view(count, *shape))
        return views


@dataclass(frozen=True, slots=True)
class Batch:
    """B slices of K classes.

    Attributes:
        images: (B, C, S, S) uint8 grey levels; with context, C channels of the whole stack.
        z_norm: (B,) float32 in [0, 1].
        labels: (B, K) float32, 0 or 1, NaN where a slice has no label.
        keys: (B,) int64, the bits of the uint64 `Cache.keys`.
        lines: (B,) int64 positions in `Cache.table`.
        drawn: (B, D) float32, what the stream's `Draw` gave; D is 0 without one.
    """

    images: Tensor
    z_norm: Tensor
    labels: Tensor
    keys: Tensor
    lines: Tensor
    drawn: Tensor
    _packed: Tensor = field(repr=False)
    _layout: Layout = field(repr=False)
    _guard: Guard = field(default_factory=Guard, repr=False)

    @classmethod
    def of(cls, packed: Tensor, layout: Layout, count: int, guard: Guard) -> "Batch":
        """Return the batch of `count` slices that some bytes hold, (layout.size(count),) uint8."""
        keys, lines, z_norm, labels, drawn, images = layout.unpack(packed, count)
        return cls(images, z_norm, labels, keys, lines, drawn, packed, layout, guard)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device, in one copy. The host does not wait for one from pinned memory to a GPU."""
        on_gpu = device.type == "cuda"
        packed = self._packed.to(device, non_blocking=on_gpu)
        if on_gpu:
            self._guard.copied = torch.cuda.current_stream(device).record_event()
        return Batch.of(packed, self._layout, len(self.lines), Guard())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the batch's memory on a GPU until the stream has used it."""
        self._packed.record_stream(stream)


class Slot:
    """Memory of one batch, filled again and again, but never while somebody holds what it was filled with."""

    def __init__(self, layout: Layout, *, pin: bool) -> None:
        size = layout.size(layout.batch_size)
        self._memory = Memory(lambda: torch.empty(size, dtype=torch.uint8, pin_memory=pin).numpy())
        self._layout = layout
        self.guard = Guard()

    def images(self) -> np.ndarray:
        """Return the memory of the images, (B, C x S x S) uint8, to fill it."""
        layout = self._layout
        return self._memory.array()[layout.offsets()[-1] :].reshape(layout.batch_size, -1)

    def batch(self, count: int) -> Batch:
        """Return the first `count` slices of the memory as a batch."""
        return Batch.of(self._memory.tensor()[: self._layout.size(count)], self._layout, count, self.guard)

    def is_held(self) -> bool:
        """Whether somebody still has a batch of this memory, or a view of a part of one."""
        return self._memory.is_held()

"""One batch in memory: all of its parts in one contiguous buffer, which goes to a device in one copy."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.data.memory import Memory

ALIGNED = 256  # bytes: the alignment of each part, as the widest loads of a GPU require


class Guard:
    """Keeps memory from being overwritten while a GPU is still copying from it."""

    def __init__(self) -> None:
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()


@dataclass(frozen=True)
class Layout:
    """Where the parts of a batch are in its buffer: the small ones first, each with room for a full batch.

    The images are last, so that a smaller batch is contiguous too.

    Attributes:
        batch_size: maximum number of slices.
        image_shape: (C, S, S).
        classes: K, labels per slice.
        drawn: D, numbers per slice from the stream's `Draw`.
    """

    batch_size: int
    image_shape: tuple[int, int, int]
    classes: int
    drawn: int

    def parts(self) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """Return the dtype and shape per slice of each part, in memory order, which is that of `Batch.of`."""
        return (
            (torch.int64, ()),
            (torch.int64, ()),
            (torch.float32, ()),
            (torch.float32, (self.classes,)),
            (torch.float32, (self.drawn,)),
            (torch.uint8, self.image_shape),
        )

    def offsets(self) -> list[int]:
        """Return the offset of each part, in bytes."""
        begins = [0]
        for dtype, shape in self.parts()[:-1]:
            size = dtype.itemsize * math.prod(shape) * self.batch_size
            begins.append(begins[-1] + -(-size // ALIGNED) * ALIGNED)
        return begins

    def size(self, count: int) -> int:
        """Return the number of bytes from the first part to the end of the images of `count` slices."""
        return self.offsets()[-1] + count * math.prod(self.image_shape)

    def unpack(self, packed: Tensor, count: int) -> list[Tensor]:
        """Return each part of the first `count` slices as a view of the buffer, (size(count),) uint8."""
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
        labels: (B, K) float32, 0 or 1, NaN for a slice without a label.
        keys: (B,) int64, the bits of the uint64 `Cache.keys`.
        lines: (B,) int64 positions in `Cache.table`.
        drawn: (B, D) float32, the numbers from the stream's `Draw`; D is 0 without one.
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
        """Return the batch of `count` slices in a buffer, (layout.size(count),) uint8."""
        keys, lines, z_norm, labels, drawn, images = layout.unpack(packed, count)
        return cls(images, z_norm, labels, keys, lines, drawn, packed, layout, guard)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device, in one copy; from pinned memory to a GPU it is asynchronous."""
        on_gpu = device.type == "cuda"
        packed = self._packed.to(device, non_blocking=on_gpu)
        if on_gpu:
            self._guard.copied = torch.cuda.current_stream(device).record_event()
        return Batch.of(packed, self._layout, len(self.lines), Guard())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the batch's memory on a GPU until the stream has used it."""
        self._packed.record_stream(stream)


class Slot:
    """Reusable memory for one batch, which is not refilled while its content is in use."""

    def __init__(self, layout: Layout, *, pin: bool) -> None:
        size = layout.size(layout.batch_size)
        self._memory = Memory(lambda: torch.empty(size, dtype=torch.uint8, pin_memory=pin).numpy())
        self._layout = layout
        self.guard = Guard()

    def images(self) -> np.ndarray:
        """Return the memory of the images, (B, C x S x S) uint8, to be filled."""
        layout = self._layout
        return self._memory.array()[layout.offsets()[-1] :].reshape(layout.batch_size, -1)

    def batch(self, count: int) -> Batch:
        """Return the first `count` slices of the memory as a batch."""
        return Batch.of(self._memory.tensor()[: self._layout.size(count)], self._layout, count, self.guard)

    def is_held(self) -> bool:
        """Return whether a batch in this memory, or a view of one, is still referenced."""
        return self._memory.is_held()

"""Reusable memory that is not refilled while its content is in use."""

import sys
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

KEPT = 4  # arrays that a ring keeps: one being filled, one with the consumer, and two that it has yet to release


class Memory:
    """An array that can tell whether any part of it is still referenced.

    A tensor made by torch.from_numpy keeps a reference to the array, as do all views of that tensor and all arrays made
    from them: once they are all gone, the array is back at its initial reference count.

    Args:
        make: returns the array, without keeping a reference to it.
    """

    def __init__(self, make: Callable[[], np.ndarray]) -> None:
        self._array = make()
        self._references = self._count()

    def array(self) -> np.ndarray:
        """Return the array, to be filled."""
        return self._array

    def tensor(self) -> torch.Tensor:
        """Return the array as a tensor, to be passed on."""
        return torch.from_numpy(self._array)

    def is_held(self) -> bool:
        """Return whether the array, a tensor made from it, or a view of one is still referenced."""
        return self._count() > self._references

    def _count(self) -> int:
        return sys.getrefcount(self._array)


class Ring:
    """Memory for batches of (C, S, S) uint8 images, since the page faults of new memory cost more than decoding.

    Threads may share it: memory that one of them is examining is not in the ring.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._kept: deque[Memory] = deque(maxlen=KEPT)

    def take(self, count: int) -> Memory:
        """Return unused memory for at least `count` images; `give_back` it once it is filled."""
        for _ in range(KEPT):
            try:
                memory = self._kept.popleft()
            except IndexError:
                break
            if memory.is_held():
                self._kept.append(memory)
            elif len(memory.array()) >= count:
                return memory
        return Memory(lambda: np.empty((count, *self._shape), np.uint8))

    def give_back(self, memory: Memory) -> None:
        """Return memory to the ring; the oldest is dropped to make room."""
        self._kept.append(memory)

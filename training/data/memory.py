"""This file keeps memory that is filled again and again, but never while somebody holds what it was filled with."""

import sys
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

KEPT = 4  # arrays that a ring keeps: one being filled, one with the consumer, and two that it has yet to drop


class Memory:
    """An array that knows whether somebody holds a part of it.

    A tensor made by torch.from_numpy keeps a reference to the array, and so does each view of that tensor and each
    array made of one: once all are gone, the array has as many references as in the beginning.

    Args:
        make: gives the array, to which nobody else has a reference.
    """

    def __init__(self, make: Callable[[], np.ndarray]) -> None:
        self._array = make()
        self._references = self._count()

    def array(self) -> np.ndarray:
        """Return the array, to fill it."""
        return self._array

    def tensor(self) -> torch.Tensor:
        """Return the array as a tensor, to hand it on."""
        return torch.from_numpy(self._array)

    def is_held(self) -> bool:
        """Whether somebody has the array, a tensor of it, or a view of a part of one."""
        return self._count() > self._references

    def _count(self) -> int:
        return sys.getrefcount(self._array)


class Ring:
    """Memory for batches of (C, S, S) uint8 images. Fresh memory costs more in page faults than to decode into it.

    Threads may share it: memory that one of them looks at is out of the ring meanwhile.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._kept: deque[Memory] = deque(maxlen=KEPT)

    def take(self, count: int) -> Memory:
        """Return memory that nobody holds, for `count` images or more; `give_back` it once it is filled."""
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
        """Keep memory for the next time; the one that was kept longest makes room."""
        self._kept.append(memory)

"""Pass images from a DataLoader worker to its parent process in reused shared memory.

torch allocates new shared memory for each tensor that a worker sends. Allocating its pages, mapping them in two
processes and releasing them takes several times as long as decoding the images, so here the memory is mapped once and
reused.
"""

import weakref
from multiprocessing.reduction import ForkingPickler
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

MOST_SLOTS = 8  # per worker: usually two are prefetched and two held by the consumer; beyond that torch's way is used

_receivers: weakref.WeakValueDictionary[str, "Receiver"] = weakref.WeakValueDictionary()


class Receiver:
    """Keeps the slots that workers have sent mapped, for the lifetime of the dataset in this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._slots: dict[int, tuple[str, dict[int, Tensor]]] = {}
        _receivers[name] = self

    def keep(self, worker: int, sender: str, number: int, slot: Tensor) -> None:
        """Keep a slot, and release those of the worker that this one has replaced."""
        if self._slots.get(worker, ("",))[0] != sender:
            self._slots[worker] = sender, {}
        self._slots[worker][1][number] = slot

    def __reduce__(self) -> tuple[Any, ...]:
        return Receiver, (self.name,)


class Sender:
    """The memory of one worker: slots of shared memory, each with a byte that marks it as taken.

    Only the sender takes a slot and only the receiver releases it. Only `send` writes to a slot, so a worker may do
    anything with its own tensors.
    """

    def __init__(self) -> None:
        self.name = uuid4().hex
        self.taken = torch.zeros(MOST_SLOTS, dtype=torch.uint8).share_memory_()
        self._slots: list[Tensor] = []

    def send(self, images: Tensor) -> tuple[int, Tensor] | None:
        """Copy (B, C, S, S) uint8 into a free slot; return its number and memory, or None if none is free."""
        needed = images.numel()
        for number, slot in enumerate(self._slots):
            if not self.taken[number] and len(slot) >= needed:
                break
        else:
            number = len(self._slots)
            if number == MOST_SLOTS:
                return None
            slot = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(needed))
            self._slots.append(slot)
        slot[:needed].copy_(images.view(-1))
        self.taken[number] = 1
        return number, slot


class Batch(dict[str, Any]):
    """A batch that a worker is about to send; it arrives as a plain dict.

    Attributes:
        receiver: name of the dataset's `Receiver`.
        sender: of this worker.
    """

    receiver: str
    sender: Sender


def wrap_for_sending(batch: dict[str, Any], receiver: str, sender: Sender) -> Batch:
    """Return a batch whose `image`, (B, C, S, S) uint8, is passed to the other process in a slot of the sender."""
    sent = Batch(batch)
    sent.receiver, sent.sender = receiver, sender
    return sent


def _reduce(batch: Batch) -> tuple[Any, ...]:
    info, images = get_worker_info(), batch["image"]
    place = None if info is None else batch.sender.send(images)
    if info is None or place is None:
        return dict, (dict(batch),)
    rest = dict(batch) | {"image": None}
    return _receive, (rest, images.shape, place, batch.sender.taken, (batch.receiver, info.id, batch.sender.name))


def _receive(
    batch: dict[str, Any],
    shape: torch.Size,
    place: tuple[int, Tensor],
    taken: Tensor,
    addresses: tuple[str, int, str],
) -> dict[str, Any]:
    (number, slot), (receiver, worker, sender) = place, addresses
    if (keeper := _receivers.get(receiver)) is not None:
        keeper.keep(worker, sender, number, slot)
    array = slot.numpy()[: shape.numel()].reshape(shape)
    # A tensor made from this array, and every view of it, keeps the array alive; once all are gone, it is freed.
    weakref.finalize(array, taken.__setitem__, number, 0).atexit = False
    return batch | {"image": torch.from_numpy(array)}


ForkingPickler.register(Batch, _reduce)

"""This file hands images from a DataLoader's worker to the process it works for, in memory mapped once in both.

torch gives each tensor that a worker sends shared memory of its own. To get its pages from the system, to map them in
two processes and to give them back costs several times what it takes to decode into them, so here they are used again.
"""

import weakref
from multiprocessing.reduction import ForkingPickler
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

MOST_SLOTS = 8  # of a worker: two ahead and two with the consumer as a rule; past that torch's own way is taken

_receivers: weakref.WeakValueDictionary[str, "Receiver"] = weakref.WeakValueDictionary()


class Receiver:
    """Keeps what workers have sent mapped, for as long as the dataset that they read lives here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._slots: dict[int, tuple[str, dict[int, Tensor]]] = {}
        _receivers[name] = self

    def keep(self, worker: int, sender: str, number: int, slot: Tensor) -> None:
        """Keep a slot; those of a worker that this one has taken the place of are let go."""
        if self._slots.get(worker, ("",))[0] != sender:
            self._slots[worker] = sender, {}
        self._slots[worker][1][number] = slot

    def __reduce__(self) -> tuple[Any, ...]:
        return Receiver, (self.name,)


class Sender:
    """The memory of one worker: slots of shared memory, and for each a byte that says whether it is taken.

    Only the sender takes a slot, only the receiver lets it go. Nothing but `send` writes to a slot, so what a worker
    does with its own tensors is of no account.
    """

    def __init__(self) -> None:
        self.name = uuid4().hex
        self.taken = torch.zeros(MOST_SLOTS, dtype=torch.uint8).share_memory_()
        self._slots: list[Tensor] = []

    def send(self, images: Tensor) -> tuple[int, Tensor] | None:
        """Copy (B, C, S, S) uint8 into a free slot; return its number and memory, or None where none is free."""
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
    """A batch in a worker, on its way: a plain dict when it arrives.

    Attributes:
        receiver: name of the dataset's `Receiver`.
        sender: of this worker.
    """

    receiver: str
    sender: Sender


def to_be_sent(batch: dict[str, Any], receiver: str, sender: Sender) -> Batch:
    """Return a batch whose `image`, (B, C, S, S) uint8, goes to the other process in a slot of the sender."""
    sent = Batch(batch)
    sent.receiver, sent.sender = receiver, sender
    return sent


def _reduce(batch: Batch) -> tuple[Any, ...]:
    info, images = get_worker_info(), batch["image"]
    place = None if info is None else batch.sender.send(images)
    if info is None or place is None:
        return dict, (dict(batch),)
    rest = dict(batch) | {"image": None}
    return _receive, (rest, tuple(images.shape), *place, batch.sender.taken, batch.receiver, info.id, batch.sender.name)


def _receive(  # noqa: PLR0917  # pickle calls it with a tuple
    batch: dict[str, Any],
    shape: tuple[int, ...],
    number: int,
    slot: Tensor,
    taken: Tensor,
    receiver: str,
    worker: int,
    sender: str,
) -> dict[str, Any]:
    if (keeper := _receivers.get(receiver)) is not None:
        keeper.keep(worker, sender, number, slot)
    array = slot.numpy()[: torch.Size(shape).numel()].reshape(shape)
    # A tensor made of this array, and each view of it, keeps the array: once all are gone, so is it.
    weakref.finalize(array, taken.__setitem__, number, 0).atexit = False
    return batch | {"image": torch.from_numpy(array)}


ForkingPickler.register(Batch, _reduce)

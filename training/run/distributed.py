"""Join the processes that torchrun started: who is who, on which device, and what they tell each other."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees it; a run without torchrun is one of one.

    Attributes:
        rank: this process's number, from 0.
        count: how many there are.
        device: what this process computes on.
        control: where flags and small results travel on the CPU, so that asking does not wait for the GPU.
    """

    rank: int
    count: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files and draws progress bars."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:  # noqa: FBT001  # as the built-in one
        """Whether the flag is set in any process; all must ask together."""
        if self.control is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags.item())

    def add_up(self, values: Tensor) -> Tensor:
        """Add a tensor on the device over the processes, in place, without waiting for the device."""
        if self.control is not None:
            dist.all_reduce(values)
        return values

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that the first one's tensors on the device have, in place."""
        if self.control is not None:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def part(self, values: np.ndarray) -> np.ndarray:
        """Return this process's part of what belongs to a global batch, (n, ...), as the stream divides it."""
        return np.array_split(values, self.count)[self.rank]

    def join(self, part: Tensor, size: int) -> Tensor:
        """Return a global batch (size, ...) from its parts, one in each process."""
        if self.control is None:
            return part
        lengths = [len(indices) for indices in np.array_split(np.arange(size), self.count)]
        padded = part.new_zeros((lengths[0], *part.shape[1:]))  # the first part is the longest
        padded[: len(part)] = part
        everyone = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(everyone, padded)
        return torch.cat([rows[:n] for rows, n in zip(everyone, lengths, strict=True)])

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, in the order of ranks, on every process."""
        if self.control is None:
            return [value]
        values: list[T] = [value] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.control is not None:
            dist.barrier(group=self.control)


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Find this process's place and device; under torchrun, connect to the others and part from them at the end.

    Args:
        device: "cpu", "cuda", or "auto", which is a GPU where there is one.

    Raises:
        ConfigError: a GPU was asked for where there is none, or none is left for this process.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local)
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        control = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))  # every process is in it
        yield Processes(dist.get_rank(), count, chosen, control)
    finally:
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Return the device of the machine's process of that number.

    Raises:
        ConfigError: no GPU for it.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise ConfigError(
            "--device cuda: torch finds no GPU here; use --device cpu, or check nvidia-smi and the torch build"
        )
    if local_rank >= available:
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU, there are {available}; lower --nproc-per-node"
        )
    return torch.device("cuda", local_rank)

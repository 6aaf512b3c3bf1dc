"""The processes of a run under torchrun: their ranks and devices, and communication between them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import ConfigError, RunError

T = TypeVar("T")
# Parts of the messages of gloo and NCCL after a process is lost.
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "connection was closed")


@dataclass(frozen=True)
class Exchange:
    """The rows that one process sends and receives in an exchange of rows of a global batch.

    Attributes:
        order: (B,) int64 its own rows, grouped by the process that they are sent to, each once.
        places: (B,) int64 the positions of the requested rows among those received.
        sends, receives: number of rows sent to, and received from, each process.
    """

    order: np.ndarray
    places: np.ndarray
    sends: list[int]
    receives: list[int]


@dataclass(frozen=True)
class Processes:
    """The processes of a run, from the point of view of one of them; without torchrun there is only one.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        device: device of this process.
        control: group for flags and small results on the CPU, so that exchanging them does not wait for the GPU; None
            for a single process.
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
        """Return whether the flag is set in any process; all processes must call this."""
        if self.control is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags.item())

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor on the device over all processes, in place, without waiting for the device."""
        if self.control is not None:
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of the first process's tensors on the device to all other processes, in place."""
        if self.control is not None:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def part(self, values: np.ndarray) -> np.ndarray:
        """Return this process's part of the values for a global batch, (n, ...), as `Stream.epoch` divides it."""
        return np.array_split(values, self.count)[self.rank]

    def plan(self, wanted: np.ndarray) -> Exchange:
        """Plan an exchange after which row i of the global batch has row wanted[i].

        Args:
            wanted: (n,) a permutation of the global batch; the same in every process.
        """
        parts = np.array_split(wanted, self.count)
        first = int(sum(map(len, parts[: self.rank])))
        own = range(first, first + len(parts[self.rank]))
        sent = [part[(part >= own.start) & (part < own.stop)] - first for part in parts]
        owners = np.searchsorted(np.cumsum([len(part) for part in parts]), parts[self.rank], side="right")
        places = np.empty(len(owners), np.int64)
        places[np.argsort(owners, kind="stable")] = np.arange(len(owners))
        return Exchange(
            np.concatenate(sent),
            places,
            [len(rows) for rows in sent],
            np.bincount(owners, minlength=self.count).tolist(),
        )

    def exchange(self, rows: Tensor, plan: Exchange | None, order: Tensor, places: Tensor) -> Tensor:
        """Return the rows of the global batch that this process requested, (B, ...) contiguous.

        Only these rows are sent, each once.

        Args:
            rows: (B, ...) this process's own.
            plan: from `plan`; not needed for a single process.
            order, places: of the plan, on the device.
        """
        sent = rows[order]
        if self.control is None or plan is None:
            return sent
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, plan.receives, plan.sends)
        return received[places]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank, in every process."""
        if self.control is None:
            return [value]
        values: list[T] = [value] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.control is not None:
            dist.barrier(group=self.control)


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Find the rank and device of this process and, under torchrun, connect to the others until the context ends.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU if there is one.

    Raises:
        ConfigError: if a GPU is requested but there is none, or none is left for this process.
        RunError: if another process has ended.
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
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            raise
        raise RunError(
            f"process {dist.get_rank()} of {count}: another process has ended, and this one cannot continue without "
            "it; its own message is above; to continue a run: torchrun ... train run --resume DIR"
        ) from error
    finally:
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Return the device for the process of this local rank.

    Raises:
        ConfigError: if there is no GPU for it.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise ConfigError(
            "--device cuda: torch does not find a GPU here; use --device cpu, or check nvidia-smi and the torch build"
        )
    if local_rank >= available:
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU, as there are only {available}; lower --nproc-per-node"
        )
    return torch.device("cuda", local_rank)

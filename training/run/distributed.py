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

from training.errors import ConfigError, RunError

T = TypeVar("T")
# In what gloo and NCCL say where a process is gone.
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "connection was closed")


@dataclass(frozen=True)
class Exchange:
    """What one process sends and receives so that each has the rows that it wants.

    Attributes:
        order: (B,) int64 its own rows, by who wants them: each is wanted once.
        places: (B,) int64 where among the rows received those lie that it wants.
        sends, receives: how many rows go to, and come from, each process.
    """

    order: np.ndarray
    places: np.ndarray
    sends: list[int]
    receives: list[int]


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
        """Return the rows that this process wants, (B, ...) contiguous, of the global batch that all have a part of.

        Only they travel, each once.

        Args:
            rows: (B, ...) this process's own.
            plan: not needed by a process that is alone.
            order, places: of the plan, on the device.
        """
        sent = rows[order]
        if self.control is None or plan is None:
            return sent
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, plan.receives, plan.sends)
        return received[places]

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
        RunError: another process ended.
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
    """Return the device of the machine's process of that number.

    Raises:
        ConfigError: no GPU for it.
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
            f"process {local_rank} of this machine has no GPU, as there are {available}; lower --nproc-per-node"
        )
    return torch.device("cuda", local_rank)

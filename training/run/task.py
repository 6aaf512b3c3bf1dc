"""A task on a run: what training, scoring and prediction all need."""

from dataclasses import dataclass

import torch

from training.data.cache import Cache
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.runs import Run


@dataclass(frozen=True)
class Task:
    """A run, the cache that it reads, and the options and processes of the command that works on it."""

    run: Run
    cache: Cache
    runtime: Runtime
    processes: Processes

    @property
    def config(self) -> TrainConfig:
        return self.run.config

    @property
    def device(self) -> torch.device:
        return self.processes.device

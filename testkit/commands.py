"""Run the command `train` in processes forked from one that has imported everything, which saves seconds for each."""

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from testkit.tiny_run import SPAWNED
from training.cli.main import main


@dataclass(frozen=True)
class Command:
    """A command that was started.

    Attributes:
        process: its process.
        folder: with its output, in the files `stdout` and `stderr`.
    """

    process: Any
    folder: Path

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit code, stdout and stderr."""
        self.process.join(300)
        return self.process.exitcode, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()


def start(folder: Path, *arguments: object, before: Callable[[], None] | None = None, **environment: str) -> Command:
    """Start `train` with its output in `folder`; `before` is called in its process first."""
    folder.mkdir(parents=True)
    given = (folder, [str(argument) for argument in arguments], before, environment)
    process = SPAWNED.Process(target=_run, args=given)
    process.start()
    return Command(process, folder)


def start_several(folder: Path, count: int, *arguments: object) -> list[Command]:
    """Start `train` in `count` processes, with the environment that torchrun gives them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(folder / str(rank), *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(count)
    ]


def _run(folder: Path, arguments: list[str], before: Callable[[], None] | None, environment: dict[str, str]) -> None:
    """Run the command in the forked process, with output that is buffered as in a pipe."""
    sys.stdout, sys.stderr = open(folder / "stdout", "w"), open(folder / "stderr", "w")  # noqa: SIM115
    os.environ.update(environment)
    torch.set_num_threads(1)
    if before:
        before()
    main(arguments)

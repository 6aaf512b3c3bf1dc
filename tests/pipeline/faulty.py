"""This file holds a source whose files do to a worker what broken files do to native decoders."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipeline import convert
from pipeline.sources import Buffer, Folder, Stamp

READ_SLICES = convert.read_slices


@dataclass(frozen=True)
class Faulty(Folder):
    """A folder. Files named after one of FAULTS do that when they are decoded; reading any of them takes `pause_s`."""

    pause_s: float = 0.0

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        time.sleep(self.pause_s)
        convert.read_slices = FAULTS.get(Path(path).stem.split("-")[0], READ_SLICES)  # in this process, till the next
        return super().read(path, buffer)


def _abort(*arguments: Any) -> NoReturn:
    os.abort()


def _quit(*arguments: Any) -> NoReturn:
    os._exit(0)


def _hang(*arguments: Any) -> None:
    assert 1 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60, "the engine has set no limit"
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    time.sleep(600)


def _bomb(*arguments: Any) -> None:
    np.ones(8 << 30, np.uint8)


FAULTS: dict[str, Callable[..., Any]] = {"abort": _abort, "quit": _quit, "hang": _hang, "bomb": _bomb}

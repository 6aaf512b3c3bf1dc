"""A cache and a run on it, for messages of `train` that give a remedy."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from testkit.advice import Case, follow
from testkit.fake_cache import FakeCache, write_cache
from tests.training.run.test_train_cli import QUICK as SMALL
from tests.training.run.test_train_cli import train
from training.data.cache import Cache, open_cache
from training.errors import TrainingError

CPU = ["--device", "cpu"]
QUICK = [*SMALL, "--model", "small_resnet"]
OF_HEADS = ["--set", "head_features=16", "--set", "batch_size=3", "--epochs", 1, *CPU]


def call(*words: object) -> Result:
    """Call `train` and check that it succeeds."""
    result = train(*words)
    assert result.exit_code == 0, result.output
    return result


@dataclass
class Failure:
    """A call that fails, its advice as a pattern, and the call that follows the advice."""

    refused: Callable[[], object]
    advice: str
    right: Callable[[], object]

    def follow(self) -> None:
        """Fail, and follow the advice."""
        with pytest.raises(TrainingError, match=self.advice):
            self.refused()
        self.right()


@dataclass
class World:
    """The files that a case uses.

    Attributes:
        shared: a folder of all tests with `cache.zarr`, a run on it, and `two`, a run without a test set.
        folder: a folder of this test.
    """

    shared: Path
    folder: Path

    @property
    def cache(self) -> Path:
        return self.shared / "cache.zarr"

    @cached_property
    def run(self) -> Path:
        """A copy of the run that may be damaged."""
        return Path(shutil.copytree(self.shared / "run", self.folder / "run"))

    def restore(self, *names: str) -> None:
        """Restore files of the run, as from a backup."""
        for name in names:
            shutil.copy(self.shared / "run" / name, self.run / name)

    def new(self, *more: object, out: str = "new") -> list[Any]:
        """Return the command for a new run."""
        return ["run", "--cache", self.cache, "--out", self.folder / out, *QUICK, *more]

    def other(self, **changes: Any) -> Cache:
        """Return another cache, such as the pipeline would build with the suggested change."""
        return open_cache(write_fake(self.folder / f"c{len(list(self.folder.iterdir()))}.zarr", **changes).path)

    def on_run(self, command: str, *more: object) -> list[Any]:
        return [command, "--run", self.run, *more, *([] if command in ("report", "export") else CPU)]

    def resume(self, *more: object) -> list[Any]:
        return ["run", "--resume", self.run, *more, *CPU]


def make_shared(folder: Path) -> Path:
    """Write the cache and train the runs."""
    world = World(folder, folder)
    write_fake(folder / "cache.zarr")
    call(*world.new("--epochs", 2, out="run"))
    call(*world.new("--set", "split_fractions=[0.5,0.5,0]", out="two"))
    return folder


def write_fake(path: Path, **changes: Any) -> FakeCache:
    return write_cache(path, **({"patients": 10, "slices": 4} | changes))


def advised(words: str) -> list[str]:
    """Return a `train` command from a message, on the CPU."""
    name = shlex.split(words)[1]
    return shlex.split(words)[1:] + ([] if name in ("report", "export", "compare") else CPU)


class Cases(dict[str, Callable[[World], Case]]):
    """Cases by name, each a function that sets up its state."""

    def add(self, make: Callable[[World], Case]) -> Callable[[World], Case]:
        self[make.__name__.strip("_").replace("_", " ")] = make
        return make

    def follow(self, name: str, world: World) -> None:
        follow(self[name](world), train)

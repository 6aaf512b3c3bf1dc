"""Train runs that take a second: a fake cache, a small network, and processes that can be killed."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.data.cache import Cache
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes
from training.run.job import begin, resume
from training.run.loop import fit
from training.run.runs import Run
from training.run.task import Task
from training.series import job as series
from training.series.fit import fit_head

SETTINGS: dict[str, Any] = {
    "model": "small_resnet",
    "weights": "none",
    "size_px": 32,
    "batch_size": 8,
    "epochs": 2,
    "learning_rate": 1e-3,
    "fusion_features": 16,
    "position_features": 8,  # with four, all are 0 for all positions
}
WEIGHTS = (1, 1, 1, 1, 1, 2)  # of the fake cache's classes
HERE = Processes(0, 1, torch.device("cpu"))
SPAWNED = multiprocessing.get_context("forkserver")
# They take seconds to import, so this is done once for all processes. An optimizer's first step imports torch._dynamo.
SPAWNED.set_forkserver_preload(
    ["training.run.job", "torch._dynamo", "torch.utils.tensorboard", "sklearn.model_selection"]
)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**(SETTINGS | changes))


def runtime(**changes: Any) -> Runtime:
    return replace(Runtime(device="cpu", input_threads=0, log_every=2), **changes)


def task(run: Run, cache: Cache, **options: Any) -> Task:
    """Return a task for this process alone."""
    return Task(run, cache, runtime(**options), HERE)


def head_task(opened: tuple[Run, Run, Cache], **options: Any) -> tuple[Task, Run]:
    """Return the arguments of `fit_head` and `complete` for what `begin` or `resume` returned."""
    run, base, cache = opened
    return task(run, cache, **options), base


def train(path: Path, cache: Path, config: TrainConfig, **options: Any) -> Run:
    """Train a new run to its end, in this process."""
    torch.set_num_threads(1)
    run, opened = begin(path, cache, config, HERE)
    fit(task(run, opened, **options))
    return run


def train_or_resume(path: Path, cache: Path, config: TrainConfig, kill_at: int, options: dict[str, Any]) -> None:
    """Train or resume a run; the process kills itself at its `kill_at`-th fsync or rename, 0 for never."""
    torch.set_num_threads(1)
    if kill_at:
        _kill_at(kill_at)
    if (path / "settings.json").exists():
        run, opened = resume(path, cache, {})
    else:
        run, opened = begin(path, cache, config, HERE)
    fit(task(run, opened, **options))


def train_or_resume_head(path: Path, base: Path, values: dict[str, Any], kill_at: int, options: dict[str, Any]) -> None:
    """Train or resume a head over series on the run `base`; see `train_or_resume`."""
    torch.set_num_threads(1)
    if kill_at:
        _kill_at(kill_at)
    begun = (path / "settings.json").exists()
    opened = series.resume(path, None, {}) if begun else series.begin(path, *series.open_base(base), values, HERE)
    fit_head(*head_task(opened, **options))


def spawn_head(path: Path, base: Path, values: dict[str, Any], kill_at: int = 0, **options: Any) -> Any:
    """Start a process that trains or resumes a head."""
    process = SPAWNED.Process(target=train_or_resume_head, args=(path, base, values, kill_at, options))
    process.start()
    return process


def spawn(path: Path, cache: Path, config: TrainConfig, kill_at: int = 0, **options: Any) -> Any:
    """Start a process that trains or resumes a run."""
    process = SPAWNED.Process(target=train_or_resume, args=(path, cache, config, kill_at, options))
    process.start()
    return process


def _kill_at(number: int) -> None:
    seen = 0

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    os.fsync = dying(os.fsync)
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]

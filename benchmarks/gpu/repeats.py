"""Check that runs repeat to the bit: one undisturbed, one killed and resumed, each in separate processes.

python -m benchmarks.gpu.repeats RUN CACHE DEVICE MODEL eager|compiled KILL_AT
"""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import Report
from training.run.task import Task

STEPS = 7  # before the kill, which is then in the second epoch
LASTS_S = 240  # limit of a process, even if the one that started it is gone
WAYS = ("eager", "compiled")


@dataclass(frozen=True)
class Plan:
    """What to train, and on which cache and device."""

    cache: Path
    device: str
    model: str
    ways: tuple[str, ...] = WAYS

    def spawn(self, run: Path, way: str, kill_at: int) -> "subprocess.Popen[str]":
        """Start a process that trains a run or resumes it."""
        of = (run, self.cache, self.device, self.model, way, kill_at)
        command = [sys.executable, "-m", "benchmarks.gpu.repeats", *map(str, of)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def measure_repeats(
    report: Report, folder: Path, plan: Plan, meanwhile: Callable[[], None] = lambda: None, timeout_s: float = LASTS_S
) -> None:
    """Train deterministically, eager and compiled, killed and not, all in parallel; then resume and compare weights.

    Args:
        meanwhile: called while the first processes run; must not time anything.
    """
    with ExitStack() as running:

        def spawn(way: str, kill: int, kill_at: int) -> "subprocess.Popen[str]":
            process = plan.spawn(folder / f"{way}-{kill}", way, kill_at)
            running.callback(process.kill)  # so that none is left to slow down the next part
            return process

        begun = {(way, kill): spawn(way, kill, kill) for way in plan.ways for kill in (0, STEPS)}
        meanwhile()
        outputs = {which: process.communicate(timeout=timeout_s)[1] for which, process in begun.items()}
        resumed = {way: spawn(way, STEPS, 0) for way in plan.ways}
        errors = {way: process.communicate(timeout=timeout_s)[1] for way, process in resumed.items()}
    for way in plan.ways:
        killed = begun[way, STEPS].returncode == -signal.SIGKILL
        report.holds("e", f"{way}: the run to be killed was", killed, begun[way, STEPS].returncode)
        hashes = [digest(folder / f"{way}-{kill}") for kill in (0, STEPS)]
        equal = hashes[0] == hashes[1] != ""
        reason = "" if equal else f" {last_line(outputs[way, 0])} {last_line(errors[way])}"
        report.holds("e", f"{way}: killed and resumed ends with equal weights", equal, " ".join(hashes) + reason)


def digest(run: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 of a run's weights, or "" if it has none."""
    file = run / "weights.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.exists() else ""


def last_line(text: str) -> str:
    """Return the last line of a process's output, which names its error."""
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


def train(run_path: Path, plan: Plan, way: str, kill_at: int) -> None:
    """Train a small deterministic run, or resume it; after `kill_at` steps the process kills itself."""
    import torch

    from training.run import loop
    from training.run.config import Runtime, TrainConfig
    from training.run.distributed import Processes, choose_device
    from training.run.job import begin, resume

    torch.set_num_threads(1)
    config = TrainConfig(
        model=plan.model,
        weights="none",
        size_px=32,
        batch_size=8,
        epochs=2,
        ema_decay=0.9,
        deterministic=True,
        compile=way == "compiled",
    )
    processes = Processes(0, 1, choose_device(plan.device))
    runtime = Runtime(input_threads=2, checkpoint_every=1, log_every=2, loggers=())
    if (run_path / "settings.json").exists():
        run, cache = resume(run_path, plan.cache, {})
    else:
        run, cache = begin(run_path, plan.cache, config, processes)
    true_step, done = loop.train_step, 0

    def step(*arguments: Any) -> None:
        nonlocal done
        true_step(*arguments)
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.train_step = step
    loop.fit(Task(run, cache, runtime, processes))


if __name__ == "__main__":
    signal.alarm(LASTS_S)
    run_path, cache, device, model, way, kill_at = sys.argv[1:]
    train(Path(run_path), Plan(Path(cache), device, model), way, int(kill_at))

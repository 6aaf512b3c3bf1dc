"""Write and read checkpoints, from which a killed run resumes with bit-identical results."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from training.errors import RunError
from training.model.weights import ORIGIN, with_versions
from training.run import config as settings
from training.run.digests import check, write_atomically
from training.run.log import Log
from training.run.runs import Run


@dataclass
class Progress:
    """The progress of a run. It is also its random state: every random number is a hash of the seed and these counts.

    Attributes:
        step: updates of the weights so far.
        epoch: finished epochs, including their evaluation.
        batches: finished batches in the current epoch.
        best_loss: lowest weighted log loss on validation so far.
        best_epoch: the epoch that reached it; -1 for none.
        log_bytes: length of log.csv.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    best_loss: float = float("inf")
    best_epoch: int = -1
    log_bytes: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file: state dicts, and the progress of the run."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    ema: Mapping[str, Tensor] | None
    progress: Progress


class CheckpointWriter:
    """Writes checkpoints in a thread, one after the other, from copies, while training continues.

    Anything that a checkpoint depends on is on disk before it: the lines of the log, and the weights if they are the
    best so far. The copies need as much host memory as a checkpoint has bytes.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, run: Run, checkpoint: Checkpoint, keep: int, *, log: Log | None = None, best: bool = False) -> None:
        """Copy a checkpoint in its current state and write it in the background, after the previous one is written.

        Args:
            run: whose checkpoint it is.
            checkpoint: to copy and write.
            keep: number of most recent checkpoints to keep.
            log: the log, whose first `log_bytes` are flushed to disk before the checkpoint.
            best: whether its weights are the best so far, and are saved to `weights.safetensors` before it.

        Raises:
            RunError: if the previous checkpoint could not be written.
        """
        self.wait()
        copied, ready = snapshot(checkpoint)

        def write() -> Path:
            ready()
            if log is not None:
                log.sync(copied.progress.log_bytes)
            if best:
                save_weights(run, copied)
            return save_checkpoint(run, copied, keep)

        self._writing = self._pool.submit(write)

    def wait(self) -> None:
        """Wait until everything is written; raise a RunError if it could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait until everything is written, as `wait` does, and shut down."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def snapshot(checkpoint: Checkpoint) -> tuple[Checkpoint, Callable[[], None]]:
    """Copy a checkpoint to host memory, and return the copy and a function that waits until it is complete.

    Copies from a GPU are queued in its stream, before any later work, and the host does not wait for them.
    """
    copied = Checkpoint(
        _copy_state(checkpoint.model),
        _copy(checkpoint.optimizer),
        None if checkpoint.ema is None else _copy_state(checkpoint.ema),
        dataclasses.replace(checkpoint.progress),
    )
    devices = {tensor.device for tensor in checkpoint.model.values() if tensor.is_cuda}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def wait() -> None:
        for event in events:
            event.synchronize()

    return copied, wait


def _copy_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a module's state dict, including the versions of its modules."""
    return with_versions(_copy(state), getattr(state, "_metadata", None))


def _copy(value: Any) -> Any:
    """Copy the tensors in nested mappings and lists, keeping their memory layout; all other values are immutable."""
    if isinstance(value, Tensor):
        if not value.is_cuda:
            return value.detach().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def save_weights(run: Run, checkpoint: Checkpoint) -> None:
    """Write the evaluated weights to `weights.safetensors`, with their origin in its metadata."""
    evaluated = checkpoint.model if checkpoint.ema is None else checkpoint.ema
    tensors = {name: tensor.contiguous() for name, tensor in evaluated.items()}
    progress = checkpoint.progress
    versions = {name: of["version"] for name, of in getattr(evaluated, "_metadata", {}).items()}
    origin = {
        "model": run.config.model,
        "commit": run.data.commit,
        "step": progress.step,
        "epoch": progress.best_epoch,
        "versions": versions,
    }
    # A single entry, since safetensors writes several in random order, and the same run should give the same bytes.
    content = save(tensors, metadata={ORIGIN: json.dumps(origin)})
    write_atomically(run.weights, lambda file: file.write(content))


def save_checkpoint(run: Run, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoints/step_<step>.pt` atomically, then remove all but the newest `keep`."""
    content = {
        "model": checkpoint.model,
        "optimizer": dict(checkpoint.optimizer),
        "ema": checkpoint.ema,
        "progress": dataclasses.asdict(checkpoint.progress),
        "config": settings.to_mapping(run.config),
        "commit": run.data.commit,
        "split": run.data.split,
    }
    run.checkpoints.mkdir(exist_ok=True)
    path = run.checkpoints / f"step_{checkpoint.progress.step:09d}.pt"
    write_atomically(path, lambda file: torch.save(content, file))
    for old in list_checkpoints(run)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(run: Run) -> list[Path]:
    """Return the run's checkpoints, from oldest to newest."""
    return sorted(run.checkpoints.glob("step_*.pt"))


def load_checkpoint(run: Run) -> Checkpoint | None:
    """Read the newest checkpoint; return None if there is none yet.

    Raises:
        RunError: if it cannot be read, or has different settings, or another commit or split.
    """
    paths = list_checkpoints(run)
    if not paths:
        return None
    path = paths[-1]
    remedy = "remove it to resume from the previous one" if len(paths) > 1 else "remove it to start from the beginning"
    check(path, remedy)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        progress = Progress(**content["progress"])
        check_progress(progress, run.config)
        config = settings.from_mapping(content["config"])
    except Exception as error:  # torch, pickle and zipfile each have their own errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: cannot be read ({reason}); {remedy}") from error
    changes = settings.differences(config, run.config)
    changes += [
        f"{name}: {str(content.get(name))[:64]} there, {getattr(run.data, name)} here"
        for name in ("commit", "split")
        if content.get(name) != getattr(run.data, name)
    ]
    if changes:
        raise RunError(
            f"{path}: belongs to another run: {'; '.join(changes)}; restore settings.json, or start a new run"
        )
    parts: list[Any] = [content.get(name) for name in ("model", "optimizer", "ema")]
    if not all(isinstance(part, dict) for part in parts[:2]) or not isinstance(parts[2], dict | None):
        raise RunError(f"{path}: does not hold the state of a network and its optimizer; {remedy}")
    return Checkpoint(content["model"], content["optimizer"], content["ema"], progress)


def check_progress(progress: Progress, config: settings.TrainConfig) -> None:
    """Raise a ValueError unless a run with these settings can have made this progress."""
    counts = (progress.step, progress.epoch, progress.batches, progress.log_bytes, progress.best_epoch + 1)
    if not all(type(count) is int and 0 <= count < 1 << 60 for count in counts) or progress.epoch > config.epochs:
        raise ValueError("its progress is impossible for this run")
    if type(progress.best_loss) is not float or math.isnan(progress.best_loss):
        raise ValueError("its best loss is not a number")

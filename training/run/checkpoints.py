"""Write and read checkpoints: all that a killed run needs to go on to the bit."""

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
    """How far a run has come. It is the random state too: every draw is a hash of the seed and of these counts.

    Attributes:
        step: updates of the weights so far.
        epoch: epochs finished, evaluation and all.
        batches: batches done in the epoch under way.
        best_loss: least weighted log loss on validation so far; `best_epoch` the epoch that reached it, -1 for none.
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
    """What a checkpoint file holds: state dicts, and how far the run had come."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    ema: Mapping[str, Tensor] | None
    progress: Progress


class CheckpointWriter:
    """Writes checkpoints in a thread, one after the other, from copies, so that training goes on meanwhile.

    What a checkpoint counts on is on the disk before it: the log's lines, and the best weights where they are its own.
    The copies take as much of the host's memory again as a checkpoint has.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, run: Run, checkpoint: Checkpoint, keep: int, *, log: Log | None = None, best: bool = False) -> None:
        """Copy a checkpoint as it is now, and have `save_checkpoint` write it, once the one before is written.

        Args:
            log: of which the checkpoint's `log_bytes` are written already, and go to the disk first.
            best: whether its weights are the best so far, which go to `weights.safetensors` first.

        Raises:
            RunError: the one before could not be written.
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
        """Wait until all is written; raises a RunError where it could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """As `wait`; nothing can be saved afterwards."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def snapshot(checkpoint: Checkpoint) -> tuple[Checkpoint, Callable[[], None]]:
    """Copy a checkpoint to the host's memory, and return what waits until it is there.

    From a GPU the copies are made in the order of its work, before whatever is asked of it next; the host goes on.
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
    """Copy a module's state dict, with the versions of its modules."""
    return with_versions(_copy(state), getattr(state, "_metadata", None))


def _copy(value: Any) -> Any:
    """Copy the tensors within mappings and lists, as they are laid out; all else is numbers and texts."""
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
    """Write the weights that are evaluated to `weights.safetensors`, with where they come from in its metadata."""
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
    # One entry: safetensors writes several in an order of chance, and the same run is to give the same bytes.
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
    """Return the run's checkpoints, the newest last."""
    return sorted(run.checkpoints.glob("step_*.pt"))


def load_checkpoint(run: Run) -> Checkpoint | None:
    """Read the newest checkpoint; None where the run was stopped before its first.

    Raises:
        RunError: it cannot be read, or is one of other settings, another commit or another split.
    """
    paths = list_checkpoints(run)
    if not paths:
        return None
    path = paths[-1]
    way_out = "remove it to go on from the one before" if len(paths) > 1 else "remove it to begin again from the start"
    check(path, way_out)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        progress = Progress(**content["progress"])
        check_progress(progress, run.config)
        config = settings.from_mapping(content["config"])
    except Exception as error:  # torch, pickle and zipfile each have their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: cannot be read ({reason}); {way_out}") from error
    changes = settings.differences(config, run.config)
    changes += [
        f"{name}: {str(content.get(name))[:64]} there, {getattr(run.data, name)} here"
        for name in ("commit", "split")
        if content.get(name) != getattr(run.data, name)
    ]
    if changes:
        raise RunError(f"{path}: is not of this run: {'; '.join(changes)}; restore settings.json, or start a new run")
    parts: list[Any] = [content.get(name) for name in ("model", "optimizer", "ema")]
    if not all(isinstance(part, dict) for part in parts[:2]) or not isinstance(parts[2], dict | None):
        raise RunError(f"{path}: holds no state of a network and its optimizer; {way_out}")
    return Checkpoint(content["model"], content["optimizer"], content["ema"], progress)


def check_progress(progress: Progress, config: settings.TrainConfig) -> None:
    """Raise a ValueError unless a run of these settings can have come so far."""
    counts = (progress.step, progress.epoch, progress.batches, progress.log_bytes, progress.best_epoch + 1)
    if not all(type(count) is int and 0 <= count < 1 << 60 for count in counts) or progress.epoch > config.epochs:
        raise ValueError("it has come further than its run can")
    if type(progress.best_loss) is not float or math.isnan(progress.best_loss):
        raise ValueError("its best loss is not a number")

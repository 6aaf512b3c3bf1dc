"""Write and read checkpoints: all that a killed run needs to go on to the bit."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import RunError
from training.run import config as settings
from training.run.digests import check, write_atomically
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


def save_checkpoint(run: Run, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoints/step_<step>.pt` atomically, then remove all but the newest `keep`."""
    content = {
        "model": dict(checkpoint.model),
        "optimizer": dict(checkpoint.optimizer),
        "ema": None if checkpoint.ema is None else dict(checkpoint.ema),
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
        config = settings.from_mapping(content["config"])
    except Exception as error:  # torch, pickle and zipfile each have their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: cannot be read ({reason}); {way_out}") from error
    changes = settings.differences(config, run.config)
    changes += [
        f"{name}: {content[name]} there, {getattr(run.data, name)} here"
        for name in ("commit", "split")
        if content[name] != getattr(run.data, name)
    ]
    if changes:
        raise RunError(f"{path}: is not of this run: {'; '.join(changes)}; restore settings.json, or start a new run")
    return Checkpoint(content["model"], content["optimizer"], content["ema"], progress)

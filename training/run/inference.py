"""Predict probabilities with a network in evaluation mode."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.data.batches import Batch
from training.data.copies import on_device
from training.data.stream import Stream
from training.model.augment import Normalise, sample
from training.run.task import Task

# Within the rotations used in training, and large enough to make a different view.
TTA_DEGREES = (-10.0, 10.0)
# The views that TTA averages over, in order.
VIEWS = ("as it is", "left to right", "top to bottom", *(f"turned {degrees:+.0f}°" for degrees in TTA_DEGREES))


class Stopped(Exception):
    """The run was asked to stop, by SIGTERM or Ctrl-C; its progress is saved."""


def views(grey: Tensor, *, tta: bool) -> Iterator[Tensor]:
    """Yield the views for the network: the images, and with TTA also both mirror images and small rotations.

    Args:
        grey: (B, C, S, S) float32 grey levels in [0, 1], before normalisation, as rotations fill with air, which is 0.
    """
    yield grey
    if not tta:
        return
    yield grey.flip(3)
    yield grey.flip(2)
    upright = np.ones(len(grey), np.float32)
    for degrees in TTA_DEGREES:
        yield sample(grey, upright, math.radians(degrees) * upright)


def predict_views(
    task: Task,
    net: nn.Module,
    stream: Stream,
    *,
    tta: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict every slice of the processes' streams exactly once.

    Args:
        net: the network, which is put in evaluation mode.
        stream: this process's share of the n slices, from `streams.open_evaluation`.
        tta: predict all VIEWS.
        asked_to_stop: called after each batch; return True to stop.

    Returns:
        (n,) int64 lines of the cache's table, ascending, and (n, V, K) float64 probabilities for each view: VIEWS
        with TTA, otherwise only the first; the same in every process.

    Raises:
        Stopped: if any process was asked to stop.
    """
    net.eval()
    processes, bf16 = task.processes, task.config.bf16
    normalise, num_slices = Normalise(*task.run.mean_std, task.device), sum(processes.gather(stream.num_slices))
    lines: list[Tensor] = []
    results: list[Tensor] = []
    batches = on_device(stream.epoch(0, 0, shuffle=False), task.device)
    bar = tqdm(total=num_slices, unit="slice", desc="evaluate", leave=False, disable=None if processes.writes else True)
    with torch.inference_mode(), bar, closing(batches):
        for _ in range(max(processes.gather(stream.num_batches()))):
            if (batch := next(batches, None)) is not None:  # a process may have no batch in the last round
                results.append(predict_batch(net, batch, normalise, bf16=bf16, tta=tta))
                lines.append(batch.lines.clone())  # the ring reuses its memory
                bar.update(min(len(batch.lines) * processes.count, num_slices - bar.n))
            if processes.any(asked_to_stop()):
                raise Stopped
    own = [(of.cpu().numpy(), result.cpu().numpy()) for of, result in zip(lines, results, strict=True)]
    parts = [part for process in processes.gather(own) for part in process]
    everything = np.concatenate([part[0] for part in parts])
    order = np.argsort(everything, kind="stable")
    return everything[order], np.concatenate([part[1] for part in parts])[order]


def predict_slices(task: Task, net: nn.Module, stream: Stream, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """As `predict_views`, with the same options, but return the mean over the views, (n, K) float64."""
    lines, by_view = predict_views(task, net, stream, **options)
    return lines, by_view.mean(axis=1)


def predict_batch(net: nn.Module, batch: Batch, normalise: Normalise, *, bf16: bool, tta: bool) -> Tensor:
    """Return the probabilities of a batch for each view, (B, V, K) float64.

    The sigmoid is computed in float64: in float32 it is exactly 1 for logits from 17, which the log loss would clip at
    1e-15.
    """
    grey = batch.images.float().div_(255)
    each = []
    for view in views(grey, tta=tta):
        with torch.autocast(grey.device.type, torch.bfloat16, enabled=bf16 and grey.device.type == "cuda"):
            logits = net(normalise(view.contiguous(memory_format=torch.channels_last)), batch.z_norm)
        each.append(torch.sigmoid(logits.double()))
    return torch.stack(each, dim=1)

"""Ask a network for probabilities, of slices that it is not trained on."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.data.copies import on_device
from training.data.stream import Stream
from training.model.augment import Normalise, sample
from training.run.distributed import Processes

# Within the rotations of training, far enough apart to be another look.
TTA_DEGREES = (-10.0, 10.0)
# What TTA averages over, in its order.
VIEWS = ("as it is", "left to right", "top to bottom", *(f"turned {degrees:+.0f}°" for degrees in TTA_DEGREES))


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, or Ctrl-C); it has kept what it had."""


def views(grey: Tensor, *, tta: bool) -> Iterator[Tensor]:
    """Yield what the network is to look at: the images, and with TTA both mirror images and small rotations.

    Args:
        grey: (B, C, S, S) float32 grey levels in [0, 1], not yet normalised: a rotation's fill is air, which is 0.
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
    net: nn.Module,
    stream: Stream,
    num_slices: int,
    normalise: Normalise,
    processes: Processes,
    *,
    bf16: bool,
    tta: bool = False,
    title: str = "evaluate",
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict every slice of the processes' streams exactly once.

    Args:
        stream: of this process's own slices, as `streams.open_evaluation` opens it.
        num_slices: in the streams of all processes, n.

    Returns:
        (n,) int64 lines of the cache's table, ascending, and (n, V, K) float64 probabilities, by view: VIEWS
        with TTA, else the first of them; the same in every process.

    Raises:
        Stopped: some process was asked to stop.
    """
    net.eval()
    lines: list[Tensor] = []
    results: list[Tensor] = []
    batches = on_device(stream.epoch(0, 0, shuffle=False), processes.device)
    bar = tqdm(total=num_slices, unit="slice", desc=title, leave=False, disable=None if processes.writes else True)
    with torch.inference_mode(), bar, closing(batches):
        for _ in range(max(processes.gather(stream.num_batches()))):
            if (batch := next(batches, None)) is not None:  # a process may have no batch in the last round
                results.append(predict_batch(net, batch.images, batch.z_norm, normalise, bf16=bf16, tta=tta))
                lines.append(batch.lines.clone())  # the ring takes its memory back
                bar.update(min(len(batch.lines) * processes.count, num_slices - bar.n))
            if processes.any(asked_to_stop()):
                raise Stopped
    own = [(of.cpu().numpy(), result.cpu().numpy()) for of, result in zip(lines, results, strict=True)]
    parts = [part for process in processes.gather(own) for part in process]
    everything = np.concatenate([part[0] for part in parts])
    order = np.argsort(everything, kind="stable")
    return everything[order], np.concatenate([part[1] for part in parts])[order]


def predict_slices(
    net: nn.Module, stream: Stream, num_slices: int, normalise: Normalise, processes: Processes, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """As `predict_views`, with its options; the probabilities are the mean over the views, (n, K) float64."""
    lines, by_view = predict_views(net, stream, num_slices, normalise, processes, **options)
    return lines, by_view.mean(axis=1)


def predict_batch(
    net: nn.Module, images: Tensor, z_norm: Tensor, normalise: Normalise, *, bf16: bool, tta: bool
) -> Tensor:
    """Return probabilities by view, (B, V, K) float64, from (B, C, S, S) uint8 and (B,) float32.

    The sigmoid is taken in float64: in float32 it is exactly 1 from a logit of 17 on, and log loss would see 1e-15.
    """
    grey = images.float().div_(255)
    each = []
    for view in views(grey, tta=tta):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16 and images.device.type == "cuda"):
            logits = net(normalise(view.contiguous(memory_format=torch.channels_last)), z_norm)
        each.append(torch.sigmoid(logits.double()))
    return torch.stack(each, dim=1)

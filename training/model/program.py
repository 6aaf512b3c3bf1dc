"""The exported form of a run: its network with pre- and postprocessing, and slices to check the file with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.data.cache import Cache
from training.model.augment import Normalise
from training.model.network import FusionNet, load_run_weights
from training.report.pictures import read_images
from training.run.runs import Run

SAMPLE_SLICES, SAMPLES = 8, 4


@dataclass(frozen=True)
class Program:
    """A program to be written to a file.

    Attributes:
        module: takes the inputs in order and returns probabilities.
        inputs: an example of each, by name; all share the first axis, which may have any length of at least 1.
        axis: name of that axis.
        about: metadata to be stored in the file, each value as JSON.
        samples: inputs to check the file with, and the run's probabilities for them, (n, K) float64.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    axis: str
    about: Mapping[str, str]
    samples: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]]


class Exported(nn.Module):
    """A network with pre- and postprocessing: grey levels and slice positions in, probabilities out."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: FusionNet, mean: np.ndarray, std: np.ndarray) -> None:
        """Wrap a run's network with the mean and standard deviation per channel of its training slices, (C,) each."""
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(np.where(std > 0, std, 1), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, z_norm: Tensor) -> Tensor:
        """Return probabilities (B, K) float32 from images (B, C, S, S) uint8 and positions (B,) float32 in [0, 1]."""
        return torch.sigmoid(self.net((images.float() / 255 - self.mean) / self.std, z_norm))


def slice_program(run: Run, cache: Cache) -> Program:
    """Return a run on slices as a program for a batch of slices, with the first slices of the cache as samples.

    Raises:
        RunError: if the run has no weights.
    """
    net = load_run_weights(run.config, len(run.data.classes), run.weights, run.channels).eval()
    # A batch of 2, because torch.export treats a length of 1 as a constant.
    inputs = {"images": blank_images(run, 2), "z_norm": torch.full((2,), 0.5)}
    about = {"inputs": {"images": "uint8 grey levels", "z_norm": "float32, position within the series, 0 foot, 1 head"}}
    return Program(
        module=Exported(net, *run.mean_std).eval(),
        inputs=inputs,
        axis="batch",
        about=metadata(run, about),
        samples=_samples(net, run, cache),
    )


def blank_images(run: Run, count: int) -> Tensor:
    """Return black images for a run's network, (count, C, S, S) uint8."""
    return torch.zeros(count, len(run.channels), run.config.size_px, run.config.size_px, dtype=torch.uint8)


def _samples(net: FusionNet, run: Run, cache: Cache) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Return the first slices of the cache and their probabilities, computed without any code of `Exported`."""
    normalise = Normalise(*run.mean_std, torch.device("cpu"))
    found = []
    for first in range(0, min(SAMPLES * SAMPLE_SLICES, cache.num_slices), SAMPLE_SLICES):
        table = cache.table.iloc[first : first + SAMPLE_SLICES]
        images = read_images(cache, run.config.size_px, table["row"].to_numpy(), run.context)
        z_norm = table["z_norm"].to_numpy(np.float32)
        with torch.inference_mode():
            grey = torch.from_numpy(images).float().div_(255)
            logits = net(normalise(grey), torch.from_numpy(z_norm))
        found.append(({"images": images, "z_norm": z_norm}, torch.sigmoid(logits.double()).numpy()))
    return found


def metadata(run: Run, more: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata of a file, each value as JSON: its inputs, its outputs and its origin."""
    data = run.data
    content = {
        "classes": data.classes,
        "windows": [{"name": name, "level_hu": level, "width_hu": width} for name, level, width in data.windows],
        "channels": run.channels,  # which window each channel shows
        "size_px": run.config.size_px,
        "normalisation": {"mean": data.mean, "std": data.std, "of": "grey level / 255 by window; inside the network"},
        "model": run.config.model,
        "commit": data.commit,
        **more,
    }
    return {name: json.dumps(value) for name, value in content.items()}

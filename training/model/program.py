"""What of a run is exported: a network with all that stands around it, and slices to check the file with."""

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
    """What is written to a file.

    Attributes:
        module: takes the inputs in their order and returns probabilities.
        inputs: an example of each, by name; all have the same first axis, which may have any length from 1 on.
        axis: that axis's name.
        about: what the file says of itself, each as JSON.
        samples: inputs to check the file with, and the run's probabilities of them, (n, K) float64.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    axis: str
    about: Mapping[str, str]
    samples: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]]


class Exported(nn.Module):
    """A network with all that stands around it: grey levels and slice position in, probabilities out."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: FusionNet, mean: np.ndarray, std: np.ndarray) -> None:
        """Take a run's network, and the mean and standard deviation by channel of its training slices."""
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(np.where(std > 0, std, 1), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, z_norm: Tensor) -> Tensor:
        """Return probabilities (B, K) float32 from images (B, C, S, S) uint8 and positions (B,) float32 in [0, 1]."""
        return torch.sigmoid(self.net((images.float() / 255 - self.mean) / self.std, z_norm))


def slice_program(run: Run, cache: Cache) -> Program:
    """Return a run that looks at slices as a program over a batch of them; the first slices of the cache are samples.

    Raises:
        RunError: the run has no weights.
    """
    net = load_run_weights(run.config, len(run.data.classes), run.weights, run.channels).eval()
    # A batch of 2: torch.export takes 1 for a constant.
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
    """(count, C, S, S) uint8 of zeros, of the shape that a run's network takes."""
    return torch.zeros(count, len(run.channels), run.config.size_px, run.config.size_px, dtype=torch.uint8)


def _samples(net: FusionNet, run: Run, cache: Cache) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """The cache's first slices and their probabilities, by a path that shares no code with `Exported`."""
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
    """Return what a file says of itself, each as JSON: what goes in, what comes out, and where it comes from."""
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

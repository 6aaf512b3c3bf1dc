"""A user's own module, with functions for `--model`, `--augment` and `--loss`."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEEN: list[tuple[int, float]] = []


def backbone(channels: int) -> nn.Module:
    """Return a network from images (B, C, S, S) to features (B, 5)."""
    return nn.Sequential(nn.Conv2d(channels, 5, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def maps(channels: int) -> nn.Module:
    """Return a network that outputs maps instead of features, which is an error."""
    return nn.Conv2d(channels, 5, 3)


def dim(grey: Tensor, keys: np.ndarray, epoch: int) -> Tensor:
    """Darken each image by a random factor, and record it in SEEN."""
    factor = torch.rand(len(grey), 1, 1, 1)
    SEEN.extend((int(key), float(value)) for key, value in zip(keys, factor.view(-1), strict=True))
    return grey * factor


def focal(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Return the focal loss of each image, (B,); a missing label counts as 0."""
    bce = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (class_weights * (1 - torch.exp(-bce)) ** 2 * bce).mean(1)

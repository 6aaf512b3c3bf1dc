"""A module of a researcher's own: what `--model`, `--augment` and `--loss` may name."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEEN: list[tuple[int, float]] = []


def backbone(channels: int) -> nn.Module:
    """Images (B, C, S, S) -> features (B, 5)."""
    return nn.Sequential(nn.Conv2d(channels, 5, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def maps(channels: int) -> nn.Module:
    """No features but maps, which is wrong."""
    return nn.Conv2d(channels, 5, 3)


def dim(grey: Tensor, keys: np.ndarray, epoch: int) -> Tensor:
    """Make each image darker by chance, and note what was drawn."""
    factor = torch.rand(len(grey), 1, 1, 1)
    SEEN.extend((int(key), float(value)) for key, value in zip(keys, factor.view(-1), strict=True))
    return grey * factor


def focal(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Focal loss of each image; a label that is not there counts as 0."""
    bce = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (class_weights * (1 - torch.exp(-bce)) ** 2 * bce).mean(1)

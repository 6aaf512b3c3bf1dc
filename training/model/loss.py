"""The loss: binary cross-entropy of the logits, weighted by class."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.run.config import TrainConfig
from training.run.functions import find_function

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def choose_loss(config: TrainConfig) -> Loss:
    """Return the loss of a run: `image_losses`, or the user's own function with the same arguments and result.

    Raises:
        ConfigError: if there is no such function.
    """
    return image_losses if config.loss == "default" else find_function(config.loss, "loss")


def image_losses(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Return the loss of each image: sum_k w_k BCE_k / sum_k w_k over the classes with a label; 0 if there are none.

    The mean over images with all labels and w = (1, 1, 1, 1, 1, 2) is the competition's weighted log loss.

    Args:
        logits: (B, K) float.
        labels: (B, K) float32 in [0, 1], NaN if missing.
        class_weights: (K,) float32, not negative.

    Returns:
        (B,) float32, nats.
    """
    known = ~labels.isnan()
    weights = class_weights * known
    # NaN must be replaced before the loss is computed, since 0 x NaN is NaN, in the gradient too.
    bce = F.binary_cross_entropy_with_logits(logits.float(), torch.where(known, labels, 0.0), reduction="none")
    return (weights * bce).sum(1) / weights.sum(1).clamp_min(torch.finfo(torch.float32).tiny)

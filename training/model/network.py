"""FusionNet: the features of an image backbone, joined with the slice position, to logits."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.errors import ConfigError, RunError
from training.model.backbones import build_backbone, describe_pretrained, fit_to, is_torchvision
from training.model.channels import RGB
from training.model.weights import load_exactly, load_foreign
from training.run.config import TrainConfig
from training.run.digests import check


class FusionNet(nn.Module):
    """Backbone features joined with the slice position, to one logit per class.

    Attributes:
        channels: number of channels of the images.
        origin: description of the initial weights; for a file, also which of its tensors were used.

    backbone -> D features; z_norm -> Linear(1, P) -> ReLU; both -> Linear(D + P, F) -> ReLU -> Dropout ->
    Linear(F, K). Without the position branch P is 0.
    """

    def __init__(
        self, backbone: nn.Module, num_features: int, num_classes: int, config: TrainConfig, channels: int = 3
    ) -> None:
        """Join a backbone that returns (B, num_features) with a new head, with widths and rates from the settings."""
        super().__init__()
        self.channels, self.origin = channels, "random initialisation"
        self.backbone = backbone
        width = config.position_features if config.position else 0
        self.position = nn.Linear(1, width) if config.position else None
        self.fuse = nn.Linear(num_features + width, config.fusion_features)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(config.fusion_features, num_classes)

    def forward(self, images: Tensor, z_norm: Tensor) -> Tensor:
        """Return logits (B, K) float32 from normalised images (B, C, S, S) float and slice positions (B,) in [0, 1]."""
        return self.logits(self.backbone(images), z_norm)

    def logits(self, features: Tensor, z_norm: Tensor) -> Tensor:
        """Return logits (B, K) float32 from the backbone's pooled features (B, D) and slice positions (B,) in [0, 1].

        Under autocast only the backbone computes in bf16: with its 8 significant bits, the positions of neighbouring
        slices could become equal, as could logits that differ by .01.
        """
        with full_precision(features.device.type):
            return self._fuse(features.float(), z_norm.float())

    def _fuse(self, features: Tensor, z_norm: Tensor) -> Tensor:
        if self.position is not None:
            place = F.relu(self.position(z_norm[:, None]))  # (B, P)
            features = torch.cat([features, place], dim=1)
        return self.classify(self.dropout(F.relu(self.fuse(features))))


def full_precision(device_type: str) -> AbstractContextManager[None]:
    """Return a context that turns autocast off, if the device type has it."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def build_model(config: TrainConfig, num_classes: int, channels: Sequence[int] = RGB) -> FusionNet:
    """Build the network of a run, with the initial weights in its settings.

    Random weights depend only on the run's seed.

    Args:
        config: settings of the run.
        num_classes: K.
        channels: window of each channel of the images; see `Context.channels`.

    Raises:
        ConfigError: if there is no such model, or its weights cannot be fetched, read, or adapted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = FusionNet(*build_backbone(config, channels), num_classes, config, len(channels))
        fit_to(net.backbone, config, channels)
    if config.weights == "imagenet":
        net.origin = describe_pretrained(config.model)
    elif config.weights != "none":
        net.origin = f"{config.weights}: {load_foreign(net, Path(config.weights), channels)}"
    return net


def check_size(net: FusionNet, config: TrainConfig) -> None:
    """Raise a ConfigError unless a network accepts images of the size in the settings; it cannot be used afterwards.

    Nothing is computed, because tensors on the "meta" device only have a shape. Backbones that are not from torchvision
    have already been run on an image of this size when they were built.
    """
    if not is_torchvision(config):
        return
    size = config.size_px
    try:
        with torch.no_grad():
            net.to("meta")(torch.empty(2, net.channels, size, size, device="meta"), torch.empty(2, device="meta"))
    except (RuntimeError, AssertionError) as error:  # layers raise RuntimeError, transformers use assert
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"--model {config.model}: does not take images of {size} px ({reason}); give another --size"
        ) from error


def load_run_weights(config: TrainConfig, num_classes: int, path: Path, channels: Sequence[int] = RGB) -> FusionNet:
    """Build a run's network with its best weights.

    Raises:
        RunError: if there are none yet, or they cannot be used.
    """
    if not path.is_file():
        raise RunError(
            f"{path}: no weights yet; train an epoch first: train run --resume {path.parent}; "
            "if the run has trained one, restore the file, or train a new run"
        )
    check(path, "restore it, or train a new run")
    net = build_model(dataclasses.replace(config, weights="none"), num_classes, channels)
    try:
        load_exactly(net, path)
    except ConfigError as error:
        what = str(error).partition("; ")[0]  # its remedy is for files given by the user
        raise RunError(f"{what}; restore it, or train a new run") from error
    for name, tensor in net.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise RunError(f"{path}: {name} has numbers that are not finite; restore it, or train a new run")
    return net

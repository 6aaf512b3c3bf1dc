"""This file builds FusionNet: an image backbone's features, joined with the slice position, to logits."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.errors import ConfigError, RunError
from training.model.channels import RGB, first_convolution, fit_channels, repeat_kernel
from training.run.config import TrainConfig

# Where torchvision's classification models keep what follows the features.
HEADS = ("fc", "classifier", "head", "heads")
# Second heads for training GoogLeNet and Inception from nothing; they would make the output a tuple.
AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")


class FusionNet(nn.Module):
    """Backbone features joined with the slice position, to one logit a class.

    backbone -> D features; z_norm -> Linear(1, P) -> ReLU; both -> Linear(D + P, F) -> ReLU -> Dropout ->
    Linear(F, K). Without the position branch P is 0.
    """

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int, config: TrainConfig) -> None:
        """Join a backbone that gives (B, num_features) with a fresh head; widths and rates come from the settings."""
        super().__init__()
        self.backbone = backbone
        width = config.position_features if config.position else 0
        self.position = nn.Linear(1, width) if config.position else None
        self.fuse = nn.Linear(num_features + width, config.fusion_features)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(config.fusion_features, num_classes)

    def forward(self, images: Tensor, z_norm: Tensor) -> Tensor:
        """Return logits (B, K) from normalised images (B, C, S, S) float and slice positions (B,) in [0, 1]."""
        return self.judge(self.backbone(images), z_norm)

    def judge(self, features: Tensor, z_norm: Tensor) -> Tensor:
        """Return logits (B, K) from the backbone's pooled features (B, D) and slice positions (B,) in [0, 1]."""
        if self.position is not None:
            place = F.relu(self.position(z_norm[:, None]))  # (B, P)
            features = torch.cat([features, place.to(features.dtype)], dim=1)
        return self.classify(self.dropout(F.relu(self.fuse(features))))


def build_model(config: TrainConfig, num_classes: int, channels: Sequence[int] = RGB) -> FusionNet:
    """Build the network of a run, with the weights that its settings name.

    Fresh weights depend on the run's seed alone.

    Args:
        channels: which window each channel of the images shows; see `Context.channels`.

    Raises:
        ConfigError: no such model, or weights that cannot be fetched, read, or fitted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = FusionNet(*build_backbone(config.model, config.weights == "imagenet"), num_classes, config)
        fit_channels(net.backbone, channels)
    if config.weights not in ("imagenet", "none"):
        load_weights(net, Path(config.weights), channels)
    return net


def check_size(net: FusionNet, config: TrainConfig) -> None:
    """Raise a ConfigError unless a network takes images of the settings' size; the network is of no use afterwards.

    Nothing is computed: on the device "meta" tensors have a shape only.
    """
    size = config.size_px
    try:
        with torch.no_grad():
            channels = first_convolution(net.backbone)[1].in_channels
            net.to("meta")(torch.empty(2, channels, size, size, device="meta"), torch.empty(2, device="meta"))
    except (RuntimeError, AssertionError) as error:  # the layers have RuntimeError, the transformers assert
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"--model {config.model}: takes no images of {size} px ({reason}); give another --size"
        ) from error


def build_backbone(name: str, imagenet: bool) -> tuple[nn.Module, int]:
    """Build a torchvision classification model without its classifier, and say how many features it gives.

    Raises:
        ConfigError: torchvision has no such model, or its weights cannot be fetched.
    """
    from torchvision import models  # 1 s, and the network itself is torch only

    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "resnet50, efficientnet_b3"
        raise ConfigError(f"--model {name}: torchvision has no such classification model; nearest: {near}")
    try:
        backbone = models.get_model(name, weights="DEFAULT" if imagenet else None)
    except (OSError, RuntimeError) as error:  # no network, or a broken download
        raise ConfigError(
            f"--weights imagenet: the weights of {name} could not be fetched ({error}); give --weights none, or "
            "--weights FILE with a state dict fetched elsewhere"
        ) from error
    for head in AUXILIARY_HEADS:
        if getattr(backbone, head, None) is not None:
            setattr(backbone, head, None)
            backbone.aux_logits = False
    return backbone, _remove_classifier(backbone)


def load_weights(net: FusionNet, path: Path, channels: Sequence[int] = RGB) -> None:
    """Load a state dict, of the backbone as torchvision has it or of a whole FusionNet, into a network.

    Args:
        path: a .safetensors file, or what torch.save made of a state dict; only tensors are read.
        channels: which window each channel of the network shows; weights for three are made to fit.

    Raises:
        ConfigError: the file is missing, is no state dict, or is one of another network.
    """
    state = read_state(path)
    whole = any(name.startswith("backbone.") for name in state)
    target = net if whole else net.backbone
    wanted = target.state_dict()
    if not whole:
        state = {
            name: tensor
            for name, tensor in state.items()
            if name.partition(".")[0] not in (*HEADS, *AUXILIARY_HEADS) or name in wanted
        }
    first = f"{'backbone.' if whole else ''}{first_convolution(net.backbone)[0]}.weight"
    if first in state and tuple(channels) != RGB and (not whole or state[first].shape != wanted[first].shape):
        state[first] = repeat_kernel(state[first], channels)
    if problem := _misfit(wanted, state):
        raise ConfigError(f"{path}: holds weights of another network than this one: {problem}")
    target.load_state_dict(state)


def load_run_weights(config: TrainConfig, num_classes: int, path: Path, channels: Sequence[int] = RGB) -> FusionNet:
    """Build a run's network with the weights that the run has kept.

    Raises:
        RunError: there are none yet, or they cannot be used.
    """
    if not path.is_file():
        raise RunError(f"{path}: no weights yet; train an epoch first: train run --resume {path.parent}")
    net = build_model(dataclasses.replace(config, weights="none"), num_classes, channels)
    try:
        load_weights(net, path, channels)
    except ConfigError as error:
        raise RunError(str(error)) from error
    return net


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or from what torch.save made.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"--weights {path}: no such file; give imagenet, none, or a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: cannot be read as weights ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{path}: is not a state dict, a mapping of names to tensors")
    return state


def _remove_classifier(backbone: nn.Module) -> int:
    """Replace the classifier by what stands before its first layer of weights, and return that layer's inputs.

    Dropout goes too: FusionNet has its own. What is left is mostly nothing; ConvNeXt, say, keeps its last norm.
    """
    (name,) = (name for name in HEADS if hasattr(backbone, name))
    head = getattr(backbone, name)
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    at = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear | nn.Conv2d))
    before = [layer for layer in layers[:at] if not isinstance(layer, nn.Dropout)]
    if isinstance(layers[at], nn.Conv2d):  # SqueezeNet classifies each place and pools afterwards
        before.append(nn.AdaptiveAvgPool2d(1))
    setattr(backbone, name, nn.Sequential(*before) if before else nn.Identity())
    return cast(nn.Linear | nn.Conv2d, layers[at]).weight.shape[1]


def _misfit(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing:
        return f"{len(missing)} of {len(wanted)} tensors are missing, {min(missing)} for one"
    if extra:
        return f"{len(extra)} tensors are unknown, {min(extra)} for one"
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            return f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
    return ""

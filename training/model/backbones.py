"""Build image backbones without their classifiers: from torchvision, from timm, or the user's own."""

import difflib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from training.errors import ConfigError
from training.model import small
from training.model.channels import fit_channels
from training.run.config import TrainConfig
from training.run.functions import find_function, is_own

# Names of the classifier in torchvision's classification models.
HEADS = ("fc", "classifier", "head", "heads")
# Auxiliary heads for training GoogLeNet and Inception from scratch, which would make the output a tuple.
AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")
TIMM = "timm:"
# Words in the messages of libraries about failed downloads and missing weights.
WORDS_OF_WEIGHTS = ("hash", "pretrained", "state_dict", "weights")


def build_backbone(config: TrainConfig, channels: Sequence[int]) -> tuple[nn.Module, int]:
    """Build the backbone in the settings, and return it with its number of features; `fit_to` must be called next.

    Args:
        config: settings of the run.
        channels: window of each channel of the images; see `Context.channels`.

    Raises:
        ConfigError: if there is no such model, its weights cannot be fetched, or it does not return features.
    """
    if config.model.startswith(TIMM):
        return _timm(config, channels)
    if is_own(config.model):
        return _own(config, channels)
    if config.model == small.NAME:
        if config.weights == "imagenet":
            raise ConfigError(f"--model {small.NAME}: has no ImageNet weights; give --weights none, or a file")
        return small.SmallResNet(), small.SmallResNet.num_features
    return torchvision_backbone(config.model, imagenet=config.weights == "imagenet")


def fit_to(backbone: nn.Module, config: TrainConfig, channels: Sequence[int]) -> None:
    """Adapt a torchvision backbone, which has three channels, to those of the images; others are built for them.

    Raises:
        ConfigError: if the backbone treats each of its three channels differently.
    """
    if is_torchvision(config):
        fit_channels(backbone, channels)


def is_torchvision(config: TrainConfig) -> bool:
    """Return whether the model is from torchvision, or is small_resnet, which is handled in the same way."""
    return not config.model.startswith(TIMM) and not is_own(config.model)


def describe_pretrained(model: str) -> str:
    """Describe the source and licence of a model's `imagenet` weights."""
    if is_own(model):
        return "as the user's own function loads them"
    if not model.startswith(TIMM):
        return f"torchvision, {model}, DEFAULT (ImageNet-1k); torchvision is BSD-3-Clause, ImageNet has its own terms"
    found = _timm_package().get_pretrained_cfg(model.removeprefix(TIMM))
    source = found.hf_hub_id or found.url or found.file or "unknown source"
    return f"{TIMM}{found.architecture}.{found.tag}, {source}; licence {found.license or 'not stated'}"


def torchvision_backbone(name: str, *, imagenet: bool) -> tuple[nn.Module, int]:
    """Build a torchvision classification model without its classifier, and return it with its number of features.

    Raises:
        ConfigError: if torchvision has no such model, or its weights cannot be fetched.
    """
    from torchvision import models  # takes 1 s, and the network itself needs only torch

    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "resnet50, efficientnet_b3"
        raise ConfigError(
            f"--model {name}: torchvision has no such classification model; nearest: {near}; for a timm model give "
            "timm:NAME, for your own give module:function"
        )
    try:
        backbone = models.get_model(name, weights="DEFAULT" if imagenet else None)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _not_built(name, error, imagenet=imagenet) from error
    for head in AUXILIARY_HEADS:
        if getattr(backbone, head, None) is not None:
            setattr(backbone, head, None)
            backbone.aux_logits = False
    return backbone, _remove_classifier(backbone)


def _timm(config: TrainConfig, channels: Sequence[int]) -> tuple[nn.Module, int]:
    timm, name = _timm_package(), config.model.removeprefix(TIMM)
    known = timm.list_models() + timm.list_pretrained()
    if name not in known:
        near = ", ".join(f"{TIMM}{one}" for one in difflib.get_close_matches(name, known, n=3)) or f"{TIMM}resnet50"
        raise ConfigError(f"--model {config.model}: timm {timm.__version__} has no such model; nearest: {near}")
    facts = timm.get_pretrained_cfg(name)
    # Models for a fixed image size, such as transformers, are built for the run's size.
    size = {"img_size": config.size_px} if facts is not None and facts.fixed_input_size else {}
    pretrained = config.weights == "imagenet"
    try:
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=len(channels), **size)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise _not_built(config.model, error, imagenet=pretrained, size_px=config.size_px) from error
    return backbone, _count_features(backbone, config, channels)


def _own(config: TrainConfig, channels: Sequence[int]) -> tuple[nn.Module, int]:
    backbone = find_function(config.model, "model")(len(channels))
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"--model {config.model}: returned a {type(backbone).__name__}; it must return a torch nn.Module"
        )
    return backbone, _count_features(backbone, config, channels)


@torch.no_grad()
def _count_features(backbone: nn.Module, config: TrainConfig, channels: Sequence[int]) -> int:
    """Return the number of features of a backbone, by running it on one black image."""
    image, was_training = torch.zeros(1, len(channels), config.size_px, config.size_px), backbone.training
    try:
        features = backbone.eval()(image)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"--model {config.model}: does not take an image of {tuple(image.shape)} ({_line(error)}); give another "
            "--size"
        ) from error
    finally:
        backbone.train(was_training)
    state = backbone.state_dict().items()
    if other := [name for name, value in state if not isinstance(value, torch.Tensor)]:
        raise ConfigError(
            f"--model {config.model}: its state dict has {other[0]}, which is not a tensor, and a run keeps only "
            "tensors; keep it in a buffer, or leave get_extra_state out"
        )
    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != 1:
        raise ConfigError(
            f"--model {config.model}: returns {shape} for one image; it must return features of shape (1, D)"
        )
    return shape[1]


def _timm_package() -> Any:
    try:
        import timm  # takes 1 s, and is an optional dependency
    except ImportError as error:
        raise ConfigError("--model timm:...: needs the package timm; run: pip install 'ich-cache[timm]'") from error
    return timm


def _remove_classifier(backbone: nn.Module) -> int:
    """Cut the classifier off before its first layer with weights, and return that layer's number of inputs.

    Dropout is removed too, since FusionNet has its own. In most models nothing is left of the classifier; ConvNeXt, for
    example, keeps its last norm.
    """
    (name,) = (name for name in HEADS if hasattr(backbone, name))
    head = getattr(backbone, name)
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    at = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear | nn.Conv2d))
    before = [layer for layer in layers[:at] if not isinstance(layer, nn.Dropout)]
    if isinstance(layers[at], nn.Conv2d):  # SqueezeNet classifies each position and pools afterwards
        before.append(nn.AdaptiveAvgPool2d(1))
    setattr(backbone, name, nn.Sequential(*before) if before else nn.Identity())
    return cast(nn.Linear | nn.Conv2d, layers[at]).weight.shape[1]


def _not_built(name: str, error: Exception, *, imagenet: bool, size_px: int | None = None) -> ConfigError:
    """Return the error for weights that could not be fetched, or for a model that could not be built."""
    of_weights = isinstance(error, OSError) or any(word in str(error) for word in WORDS_OF_WEIGHTS)
    if imagenet and of_weights:
        return ConfigError(
            f"--weights imagenet: the weights of {name} could not be fetched ({_line(error)}); give --weights none, or "
            "--weights FILE with a state dict fetched elsewhere"
        )
    at = f" at {size_px} px" if size_px else ""
    return ConfigError(f"--model {name}: cannot be built{at} ({_line(error)}); choose another model, or another --size")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__

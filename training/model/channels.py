"""Adapt a backbone's first convolution to the channels of the images, for any number of windows and slices."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.errors import ConfigError

RGB = (0, 1, 2)


def repeat_kernel(kernel: Tensor, channels: Sequence[int]) -> Tensor:
    """Convert a kernel over three channels to one over `channels`, keeping its output for identical inputs.

    The kernel of a window is repeated for each channel that shows the window, and divided by their number, so that a
    stack of identical slices gives the same output as the slice alone. If there are not three windows, each gets the
    mean of the three kernels times 3 / windows, so that identical windows give the same output as before.

    Args:
        kernel: (F, 3, h, w).
        channels: window of each channel, numbered from 0.

    Returns:
        (F, len(channels), h, w).
    """
    windows = max(channels) + 1
    if windows != kernel.shape[1]:
        kernel = (kernel.mean(1, keepdim=True) * (kernel.shape[1] / windows)).expand(-1, windows, -1, -1)
    shown = Counter(channels)
    shares = torch.tensor([1 / shown[window] for window in channels], dtype=kernel.dtype, device=kernel.device)
    return kernel[:, list(channels)] * shares.view(1, -1, 1, 1)


def first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the name of the first convolution, and the convolution itself."""
    return next((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))


def fit_channels(backbone: nn.Module, channels: Sequence[int]) -> None:
    """Replace a backbone's first convolution over three channels with one over `channels`, in place.

    Raises:
        ConfigError: if the backbone treats each of its three channels differently.
    """
    if tuple(channels) == RGB:
        return
    if getattr(backbone, "transform_input", False):
        raise ConfigError(
            f"--model: the ImageNet weights of this {type(backbone).__name__} need three channels and rescale each; "
            "choose another model, or --weights none"
        )
    name, old = first_convolution(backbone)
    new = nn.Conv2d(
        len(channels),
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(repeat_kernel(old.weight, channels))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, new)

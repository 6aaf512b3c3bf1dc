"""Augment and normalise uint8 images on the device, as float inputs for the model."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.model.draws import affine, augmentation_values, noise_numbers
from training.run.config import TrainConfig
from training.run.functions import find_function

# B batch, C window channel, S image side, K classes.


class Augment:
    """Augments and normalises batches on one device.

    The steps, in order: flip and rotation in one bilinear sampling with fill 0, brightness, contrast around each
    channel's mean, noise, clamp to [0, 1], normalisation.

    The user's own function replaces everything before the clamp. It gets (B, C, S, S) float32 grey levels in [0, 1] on
    the device, the slices' keys (B,) uint64 and the epoch, and returns grey levels of the same form. torch's generators
    are seeded for each batch, so random numbers drawn from them are reproducible.
    """

    def __init__(self, config: TrainConfig, mean: np.ndarray, std: np.ndarray, device: torch.device) -> None:
        """Draw the noise table from the run's seed; `mean` and `std` are (C,) and used to normalise the channels."""
        self.config = config
        self.normalise = Normalise(mean, std, device)
        self._dtype = torch.bfloat16 if config.bf16 and device.type == "cuda" else torch.float32
        self._own = None if config.augment == "default" else find_function(config.augment, "augment")
        # Drawn on the CPU, so that it is the same on every device.
        generator = torch.Generator().manual_seed(config.seed)
        count = noise_numbers(config, len(mean) * config.size_px**2)
        self._noise = torch.randn(count, generator=generator).to(device)
        # Each batch size is compiled separately, as for the network.
        self._images: Callable[..., Tensor] = (
            torch.compile(augment_images, dynamic=False) if config.compile else augment_images
        )

    def __call__(self, images: Tensor, keys: np.ndarray, epoch: int, values: Tensor | None = None) -> Tensor:
        """Return normalised images, (B, C, S, S) channels_last: bfloat16 if the network computes in it, else float32.

        Args:
            images: (B, C, S, S) uint8.
            keys: of the slices, (B,) uint64.
            epoch: number of the epoch, from 0.
            values: from `augmentation_values`, if they are already on the device.
        """
        if self._own is not None:
            grey = self._own(images.float().div_(255), keys, epoch).clamp(0, 1)
            return self.normalise(grey).to(self._dtype, memory_format=torch.channels_last)
        if values is None:
            drawn = augmentation_values(self.config, epoch, keys, images[0].numel())
            values = to_device(drawn, images.device)
        sampled = bool(self.config.flip_probability or self.config.rotation_degrees)
        return self._images(
            images, values, self._noise, self.normalise.mean, self.normalise.std, sampled=sampled, dtype=self._dtype
        )


class Normalise:
    """Subtracts the mean of the training set and divides by its standard deviation, per channel.

    Attributes:
        mean, std: (C, 1, 1) float32 on the device.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, device: torch.device) -> None:
        self.mean = torch.as_tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        # A constant channel is not scaled.
        std = np.where(np.asarray(std) > 0, std, 1)
        self.std = torch.as_tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)

    def __call__(self, grey: Tensor) -> Tensor:
        """Return normalised images, (B, C, S, S) float32, from grey levels in [0, 1]."""
        return (grey - self.mean).div_(self.std)


def augment_images(  # noqa: PLR0913  # a function of tensors alone, for torch.compile
    images: Tensor,
    values: Tensor,
    numbers: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    sampled: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Sample, jitter, add noise, clamp and normalise: a pure function of tensors, which torch.compile can fuse.

    Division by 255, jitter and normalisation are combined into one multiplication and one addition, and the image is
    clamped to the bounds of normalised grey levels. In float32 the result is within 1e-5 / std of that in float64,
    except where the sampling crosses an edge: there an error of 1e-5 px in position changes the grey level by up to
    1e-5 of its range.

    Args:
        images: (B, C, S, S) uint8.
        values: (B, DRAWN) float32, from `pack`.
        numbers: (n,) float32, standard normal, of which each image uses C x S x S. Empty for no noise.
        mean, std: (C, 1, 1) float32, of grey levels in [0, 1].
        sampled: whether to mirror or rotate at all.
        dtype: of the result.

    Returns:
        (B, C, S, S) in channels_last.
    """
    levels = images.float()
    if sampled:
        levels = warp(levels, values[:, :6].view(-1, 2, 3))
    gain, shift, sigma = values[:, 6:9].T[:, :, None, None, None]  # (B, 1, 1, 1) each
    middle = levels.mean(dim=(2, 3), keepdim=True)
    # In place, because allocating memory costs a CPU as much as the arithmetic. In two passes, here and for the clamp,
    # because on a CPU a single pass of addcmul or clamp with broadcasting takes four or ten times as long.
    out = levels.mul_(gain / (255 * std)).add_((shift * middle / 255 - mean) / std)
    if len(numbers):
        stretches = numbers.unfold(0, levels[0].numel(), 1)  # (n - length + 1, length), a view
        noise = stretches[values[:, 9].long()].view_as(levels)
        out.addcmul_(noise, sigma / std)
    out = torch.minimum(torch.maximum(out, -mean / std, out=out), (1 - mean) / std, out=out)
    return out.to(dtype, memory_format=torch.channels_last)


def sample(grey: Tensor, flip: np.ndarray, angle: np.ndarray) -> Tensor:
    """Mirror and rotate each image about its centre in one bilinear sampling, filling with 0.

    Args:
        grey: (B, C, S, S) float32.
        flip: (B,) 1, or -1 to mirror left to right before the rotation.
        angle: (B,) radians, counter-clockwise as displayed.
    """
    return warp(grey, to_device(affine(flip, angle), grey.device))


def warp(grey: Tensor, theta: Tensor) -> Tensor:
    """Sample (B, C, S, S) float images bilinearly with (B, 2, 3) matrices from `affine`, filling with 0."""
    grid = F.affine_grid(theta, list(grey.shape), align_corners=False)
    return F.grid_sample(grey, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def mix(own: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return share x own + (1 - share) x partner; (B, ...) tensors of images, labels or z_norm, and (B,) shares.

    If either label is missing (NaN), the result is missing too, unless the share of that label is 0.
    """
    share = share.view(-1, *[1] * (own.dim() - 1)).to(own.dtype)
    mixed = torch.lerp(partner, own, share)
    if own.dim() != 2:
        return mixed
    return torch.where(share == 1, own, torch.where(share == 0, partner, mixed))


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small array to the device without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

"""Turn uint8 images into the floats that the model sees, augmented and normalised on the device."""

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

    The order: flip and rotation in one bilinear sampling with fill 0, brightness, contrast around each channel's
    mean, noise, clamp to [0, 1], normalisation.

    A function of the user's own takes the place of all before the clamp. It gets (B, C, S, S) float32 grey levels in
    [0, 1] on the device, the slices' keys (B,) uint64 and the epoch, and returns such grey levels. torch's generators
    are seeded for each batch, so what it draws from them repeats.
    """

    def __init__(self, config: TrainConfig, mean: np.ndarray, std: np.ndarray, device: torch.device) -> None:
        """Take the channels' mean and standard deviation, (C,), and make the noise numbers from the run's seed."""
        self.config = config
        self.normalise = Normalise(mean, std, device)
        self._dtype = torch.bfloat16 if config.bf16 and device.type == "cuda" else torch.float32
        self._own = None if config.augment == "default" else find_function(config.augment, "augment")
        # Drawn on the CPU, so that every device has the same.
        generator = torch.Generator().manual_seed(config.seed)
        count = noise_numbers(config, len(mean) * config.size_px**2)
        self._noise = torch.randn(count, generator=generator).to(device)
        # Each size of batch is compiled for itself, as the network is.
        self._images: Callable[..., Tensor] = (
            torch.compile(augment_images, dynamic=False) if config.compile else augment_images
        )

    def __call__(self, images: Tensor, keys: np.ndarray, epoch: int, values: Tensor | None = None) -> Tensor:
        """Return (B, C, S, S) normalised, channels_last, bfloat16 where the network computes in it, else float32.

        Args:
            images: (B, C, S, S) uint8.
            keys: of the slices, (B,) uint64.
            values: as `augmentation_values` gives them, where they are on the device already.
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
    """Subtracts the training split's mean and divides by its standard deviation, by channel.

    Attributes:
        mean, std: (C, 1, 1) float32 on the device.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, device: torch.device) -> None:
        self.mean = torch.as_tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        # A channel of one value everywhere has nothing to scale.
        std = np.where(np.asarray(std) > 0, std, 1)
        self.std = torch.as_tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)

    def __call__(self, grey: Tensor) -> Tensor:
        """Return (B, C, S, S) float32 normalised, from grey levels in [0, 1]."""
        return (grey - self.mean).div_(self.std)


def augment_images(
    images: Tensor,
    values: Tensor,
    numbers: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    sampled: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Sample, jitter, add noise, clamp and normalise: a pure function of tensors, which torch.compile fuses.

    Dividing by 255, jitter and normalisation are one multiplication and one addition, and the bounds of the clamp are
    those of normalised grey levels. In float32 the result is within 1e-5 / std of the same in float64, but where the
    sampling crosses an edge: there a position of 1e-5 px is up to 1e-5 of a grey level's range.

    Args:
        images: (B, C, S, S) uint8.
        values: (B, DRAWN) float32, as `pack` gives them.
        numbers: (n,) float32, standard normal; an image takes C x S x S of them. Empty for no noise.
        mean, std: (C, 1, 1) float32, of grey levels in [0, 1].
        sampled: whether there is anything to mirror or rotate.
        dtype: of the result.

    Returns:
        (B, C, S, S) in channels_last.
    """
    levels = images.float()
    if sampled:
        levels = warp(levels, values[:, :6].view(-1, 2, 3))
    gain, shift, sigma = values[:, 6:9].T[:, :, None, None, None]  # (B, 1, 1, 1) each
    middle = levels.mean(dim=(2, 3), keepdim=True)
    # In place, for fresh memory costs a CPU as much as the arithmetic. In two passes, here and for the clamp: a CPU
    # takes four and ten times as long for the one pass of addcmul and of clamp where they broadcast.
    out = levels.mul_(gain / (255 * std)).add_((shift * middle / 255 - mean) / std)
    if len(numbers):
        stretches = numbers.unfold(0, levels[0].numel(), 1)  # (n - length + 1, length), a view
        noise = stretches[values[:, 9].long()].view_as(levels)
        out.addcmul_(noise, sigma / std)
    out = torch.minimum(torch.maximum(out, -mean / std, out=out), (1 - mean) / std, out=out)
    return out.to(dtype, memory_format=torch.channels_last)


def sample(grey: Tensor, flip: np.ndarray, angle: np.ndarray) -> Tensor:
    """Mirror and rotate each image about its middle in one bilinear sampling; what comes from outside is 0.

    Args:
        grey: (B, C, S, S) float32.
        flip: (B,) 1, or -1 for left to right, which comes before the rotation.
        angle: (B,) radians, counter-clockwise as displayed.
    """
    return warp(grey, to_device(affine(flip, angle), grey.device))


def warp(grey: Tensor, theta: Tensor) -> Tensor:
    """Sample (B, C, S, S) float bilinearly by (B, 2, 3) of `affine`; what comes from outside is 0."""
    grid = F.affine_grid(theta, list(grey.shape), align_corners=False)
    return F.grid_sample(grey, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def mix(own: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return share x own + (1 - share) x partner; (B, ...) tensors of images, labels or z_norm, and (B,) shares.

    A label that one of the two lacks (NaN) is lacking, unless the other counts alone: at a share of 1 or 0.
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

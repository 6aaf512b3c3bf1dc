"""Turn uint8 images into the floats that the model sees, augmented and normalised on the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.hashing import splitmix64
from training.run.config import TrainConfig
from training.run.functions import find_function

# B batch, C window channel, S image side, K classes.

# 64 MB of normal numbers; an image reads its C x S x S of them from an offset of its own. Within an image they are
# independent; two images share some, at a shift, in 2 of 100 pairs at 224 px. Drawing 150,528 numbers by a hash for
# each image would be a dozen passes over the batch in memory, this is one.
NOISE_NUMBERS = 1 << 24


@dataclass(frozen=True)
class Draws:
    """How each image of a batch is augmented; every field is (B,) float32.

    Attributes:
        flip: -1 where the image is mirrored left to right, else 1.
        angle: rotation, radians, counter-clockwise as displayed.
        brightness, contrast: factors around 1.
        sigma: standard deviation of the noise, in units of [0, 1].
        offset: where the image's noise begins, as a share of the places where it may.
    """

    flip: np.ndarray
    angle: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    sigma: np.ndarray
    offset: np.ndarray


def uniforms(seed: int, epoch: int, keys: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` numbers for each slice, in [0, 1), that depend on (seed, epoch, key, which) and on nothing else.

    Args:
        keys: (B,) uint64, one a slice.

    Returns:
        (B, count) float64 with 53 random bits each.
    """
    state = splitmix64(np.array([seed], np.uint64))
    state = splitmix64(state ^ np.uint64(epoch))
    state = splitmix64(state ^ keys.astype(np.uint64))
    bits = splitmix64(state[:, None] ^ np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)) * 2.0**-53


def draw(config: TrainConfig, epoch: int, keys: np.ndarray) -> Draws:
    """Decide how each slice of an epoch is augmented, whatever batch, process or thread it comes in.

    Args:
        keys: (B,) uint64.
    """
    u = uniforms(config.seed, epoch, keys, 6).T
    signed = 2 * u - 1
    fields = (
        np.where(u[0] < config.flip_probability, -1, 1),
        signed[1] * math.radians(config.rotation_degrees),
        1 + signed[2] * config.brightness,
        1 + signed[3] * config.contrast,
        u[4] * config.noise_sigma,
        u[5],
    )
    return Draws(*(np.asarray(values, np.float32) for values in fields))


class Augment:
    """Augments and normalises batches on one device.

    The order: flip and rotation in one bilinear sampling with fill 0, brightness, contrast around each channel's
    mean, noise, clamp to [0, 1], normalisation. A kernel or two each.

    A function of the user's own takes the place of all before the clamp. It gets (B, C, S, S) float32 grey levels in
    [0, 1] on the device, the slices' keys (B,) uint64 and the epoch, and returns such grey levels. torch's generators
    are seeded for each batch, so what it draws from them repeats.
    """

    def __init__(self, config: TrainConfig, mean: np.ndarray, std: np.ndarray, device: torch.device) -> None:
        """Take the channels' mean and standard deviation, (C,), and make the noise numbers from the run's seed."""
        self.config = config
        self.normalise = Normalise(mean, std, device)
        self._own = None if config.augment == "default" else find_function(config.augment, "augment")
        # Drawn on the CPU, so that every device has the same.
        generator = torch.Generator().manual_seed(config.seed)
        count = NOISE_NUMBERS if config.noise_sigma else 0
        self._noise = torch.randn(count, generator=generator).to(device)

    def __call__(self, images: Tensor, keys: np.ndarray, epoch: int) -> Tensor:
        """Return (B, C, S, S) float32, normalised, from (B, C, S, S) uint8 and the slices' keys (B,) uint64."""
        grey = images.float().div_(255)
        if self._own is not None:
            return self.normalise(self._own(grey, keys, epoch).clamp(0, 1))
        draws = draw(self.config, epoch, keys)
        if self.config.flip_probability or self.config.rotation_degrees:
            grey = sample(grey, draws.flip, draws.angle)
        jitter(grey, to_device(draws.brightness, grey.device), to_device(draws.contrast, grey.device))
        if self.config.noise_sigma:
            add_noise(grey, self._noise, to_device(draws.sigma, grey.device), draws.offset)
        return self.normalise(grey.clamp_(0, 1))


class Normalise:
    """Subtracts the training split's mean and divides by its standard deviation, by channel."""

    def __init__(self, mean: np.ndarray, std: np.ndarray, device: torch.device) -> None:
        self._mean = torch.as_tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        # A channel of one value everywhere has nothing to scale.
        std = np.where(np.asarray(std) > 0, std, 1)
        self._std = torch.as_tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)

    def __call__(self, grey: Tensor) -> Tensor:
        """Return (B, C, S, S) float32 normalised, from grey levels in [0, 1]."""
        return (grey - self._mean).div_(self._std)


def sample(grey: Tensor, flip: np.ndarray, angle: np.ndarray) -> Tensor:
    """Mirror and rotate each image about its middle in one bilinear sampling; what comes from outside is 0.

    Args:
        grey: (B, C, S, S) float32.
        flip: (B,) 1, or -1 for left to right, which comes before the rotation.
        angle: (B,) radians, counter-clockwise as displayed.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    zero = np.zeros_like(cos)
    # affine_grid asks where an output pixel comes from: the rotation undone, then the flip, y pointing down.
    rows = np.stack([np.stack([flip * cos, -flip * sin, zero], -1), np.stack([sin, cos, zero], -1)], 1)
    theta = to_device(rows.astype(np.float32), grey.device)
    grid = F.affine_grid(theta, list(grey.shape), align_corners=False)
    return F.grid_sample(grey, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def jitter(grey: Tensor, brightness: Tensor, contrast: Tensor) -> None:
    """Multiply each image by its brightness, then stretch it about each channel's mean by its contrast, in place.

    Args:
        grey: (B, C, S, S) float32.
        brightness, contrast: (B,) float32 factors.
    """
    # contrast * (brightness * x - m) + m with m = brightness * mean(x), in one multiplication and one addition
    mean = grey.mean(dim=(2, 3), keepdim=True)
    gain = (brightness * contrast).view(-1, 1, 1, 1)
    shift = (brightness * (1 - contrast)).view(-1, 1, 1, 1) * mean
    grey.mul_(gain).add_(shift)


def add_noise(grey: Tensor, numbers: Tensor, sigma: Tensor, offset: np.ndarray) -> None:
    """Add to each image its own stretch of normal numbers times its sigma, in place.

    Args:
        grey: (B, C, S, S) float32.
        numbers: (n,) float32, standard normal, n larger than C x S x S.
        sigma: (B,) float32.
        offset: (B,) in [0, 1).
    """
    length = grey[0].numel()
    starts = (offset.astype(np.float64) * (len(numbers) - length)).astype(np.int64)
    stretches = numbers.unfold(0, length, 1)  # (n - length + 1, length), a view
    noise = stretches[to_device(starts, grey.device)].view_as(grey)
    grey.addcmul_(noise, sigma.view(-1, 1, 1, 1))


def draw_mixup(config: TrainConfig, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw for each image of one global batch its share and its partner, keyed by (seed, batch).

    Args:
        batch: number of the batch in the run, counted from 0.
        size: images in the global batch, n.

    Returns:
        (n,) float32 lambda ~ Beta(alpha, alpha), and (n,) int64 partner, a permutation of the batch.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018.
    """
    rng = np.random.default_rng((config.seed, batch))
    share = rng.beta(config.mixup_alpha, config.mixup_alpha, size)
    return share.astype(np.float32), rng.permutation(size)


def mix(own: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return share x own + (1 - share) x partner; (B, ...) tensors of images, labels or z_norm, and (B,) shares."""
    return torch.lerp(partner, own, share.view(-1, *[1] * (own.dim() - 1)).to(own.dtype))


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small array to the device without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

"""Draw the random numbers of augmentation and mixup on the host, from hashes of seed, epoch and slice, or batch."""

import math
from dataclasses import dataclass

import numpy as np

from training.data.hashing import splitmix64
from training.run.config import TrainConfig

# B batch, C window channel, S image side.

# 64 MB of normal numbers, of which each image reads C x S x S from a random offset. Within an image they are
# independent; at 224 px, 2 % of pairs of images share some, at a shift. Hashing 150,528 numbers per image instead would
# take a dozen passes over the batch in memory; this takes one.
# This is enough for images that need at most half of them, up to 1,672 px with three channels; for larger ones the
# table grows by the size of an image, so that the number of possible offsets stays the same.
NOISE_NUMBERS = 1 << 24
DRAWN = 10  # random numbers per image on the device


@dataclass(frozen=True)
class Draws:
    """How each image of a batch is augmented; every field is (B,) float32.

    Attributes:
        flip: -1 to mirror the image left to right, otherwise 1.
        angle: rotation in radians, counter-clockwise as displayed.
        brightness, contrast: factors around 1.
        sigma: standard deviation of the noise, in units of [0, 1].
        offset: offset of the image's noise in the table, as a fraction of the possible offsets, in [0, 1).
    """

    flip: np.ndarray
    angle: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    sigma: np.ndarray
    offset: np.ndarray


def uniforms(seed: int, epoch: int, keys: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` numbers in [0, 1) for each slice, which depend only on seed, epoch, key and their index.

    Args:
        keys: (B,) uint64, one per slice.

    Returns:
        (B, count) float64 with 53 random bits each.
    """
    state = splitmix64(np.array([seed], np.uint64))
    state = splitmix64(state ^ np.uint64(epoch))
    state = splitmix64(state ^ keys.astype(np.uint64))
    bits = splitmix64(state[:, None] ^ np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)) * 2.0**-53


def draw(config: TrainConfig, epoch: int, keys: np.ndarray) -> Draws:
    """Draw the augmentation of slices in an epoch, independently of their batch, process and thread.

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


def augmentation_values(config: TrainConfig, epoch: int, keys: np.ndarray, length: int) -> np.ndarray:
    """Return the values with which the device augments images of `length` = C x S x S pixels, (B, DRAWN) float32.

    Args:
        keys: of the slices, (B,) uint64.
    """
    return pack(draw(config, epoch, keys), noise_numbers(config, length), length)


def noise_numbers(config: TrainConfig, length: int) -> int:
    """Return the size of a run's noise table, for images of `length` values."""
    if not config.noise_sigma:
        return 0
    return NOISE_NUMBERS if 2 * length <= NOISE_NUMBERS else NOISE_NUMBERS + length


def pack(draws: Draws, numbers: int, length: int) -> np.ndarray:
    """Pack the draws of B images into one array for the device, (B, DRAWN) float32.

    The columns are theta of `warp` (6), contrast x brightness, (1 - contrast) x brightness, sigma, and noise offset.

    Args:
        numbers: size of the noise table.
        length: numbers per image; `numbers` - `length` is at most 2**24, up to which float32 is exact for integers.
    """
    starts = np.floor(draws.offset.astype(np.float64) * max(0, numbers - length))
    gain, shift = draws.brightness * draws.contrast, draws.brightness * (1 - draws.contrast)
    theta = affine(draws.flip, draws.angle).reshape(-1, 6)
    return np.column_stack([theta, gain, shift, draws.sigma, starts]).astype(np.float32)


def affine(flip: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return the matrices from output to input coordinates for `affine_grid`, (B, 2, 3) float32.

    They undo the rotation and then the flip, with y pointing down.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    zero = np.zeros_like(cos)
    rows = np.stack([np.stack([flip * cos, -flip * sin, zero], -1), np.stack([sin, cos, zero], -1)], 1)
    return rows.astype(np.float32)


def draw_mixup(config: TrainConfig, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the mixup share and partner of each image in a global batch, seeded by (seed, batch).

    Args:
        batch: number of the batch in the run, from 0.
        size: n, images in the global batch.

    Returns:
        (n,) float32 lambda ~ Beta(alpha, alpha), and (n,) int64 partners, a permutation of the batch.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018.
    """
    rng = np.random.default_rng((config.seed, batch))
    share = rng.beta(config.mixup_alpha, config.mixup_alpha, size)
    return share.astype(np.float32), rng.permutation(size)

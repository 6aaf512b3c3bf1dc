"""Draw what is random of augmentation and mixup, on the host: by hashes of seed, epoch and slice, or of the batch."""

import math
from dataclasses import dataclass

import numpy as np

from training.data.hashing import splitmix64
from training.run.config import TrainConfig

# B batch, C window channel, S image side.

# 64 MB of normal numbers; an image reads its C x S x S of them from an offset of its own. Within an image they are
# independent; two images share some, at a shift, in 2 of 100 pairs at 224 px. Drawing 150,528 numbers by a hash for
# each image would be a dozen passes over the batch in memory, this is one.
# That is for images that take half of them at most, up to 1,672 px of three channels; larger ones get as many more as
# they take, so that the places where their noise may begin are as many.
NOISE_NUMBERS = 1 << 24
DRAWN = 10  # numbers for each image that the device must know


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


def augmentation_values(config: TrainConfig, epoch: int, keys: np.ndarray, length: int) -> np.ndarray:
    """Return what the device must know to augment images of `length` = C x S x S values, (B, DRAWN) float32.

    Args:
        keys: of the slices, (B,) uint64.
    """
    return pack(draw(config, epoch, keys), noise_numbers(config, length), length)


def noise_numbers(config: TrainConfig, length: int) -> int:
    """Return how many normal numbers a run keeps for images of `length` values to take their noise from."""
    if not config.noise_sigma:
        return 0
    return NOISE_NUMBERS if 2 * length <= NOISE_NUMBERS else NOISE_NUMBERS + length


def pack(draws: Draws, numbers: int, length: int) -> np.ndarray:
    """Return the draws of B images as the device takes them, (B, DRAWN) float32, to be copied there at once.

    The columns: theta of `warp` (6), contrast x brightness, (1 - contrast) x brightness, sigma, where the noise begins.

    Args:
        numbers: normal numbers that there are for noise.
        length: of them that an image takes, at most 2**24 fewer, up to which float32 counts exactly.
    """
    starts = np.floor(draws.offset.astype(np.float64) * max(0, numbers - length))
    gain, shift = draws.brightness * draws.contrast, draws.brightness * (1 - draws.contrast)
    theta = affine(draws.flip, draws.angle).reshape(-1, 6)
    return np.column_stack([theta, gain, shift, draws.sigma, starts]).astype(np.float32)


def affine(flip: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return where an output pixel comes from, as `affine_grid` takes it, (B, 2, 3) float32.

    That is the rotation undone, then the flip, y pointing down.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    zero = np.zeros_like(cos)
    rows = np.stack([np.stack([flip * cos, -flip * sin, zero], -1), np.stack([sin, cos, zero], -1)], 1)
    return rows.astype(np.float32)


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

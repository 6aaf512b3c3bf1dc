"""The elements of a painted slice: coordinates, ellipsoids and smooth noise.

All arrays of a slice are float32 of shape (G, G).
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from phantom.compiled import CELLS, Array, enlarge_all, interpolate, paint_blobs


class Grid(NamedTuple):
    """Head coordinates of the pixel centres of one slice, mm, (G, G) float32 each."""

    x: Array
    y: Array
    z: Array


class Blob(NamedTuple):
    """An ellipsoid, and its mirror image if paired.

    Attributes:
        centre, radii: mm.
        angle: rotation about z in degrees; the mirror image is rotated the other way.
        hu: value.
        soft: width of the blurred edge, mm.
        paired: whether there is a mirror image on the other side, at -x.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    angle: float = 0.0
    hu: float = 0.0
    soft: float = 1.2
    paired: bool = True


def draw(canvas: Array, grid: Grid, blobs: Sequence[Blob], hu: float | None = None, grow_mm: float = 0.0) -> None:
    """Blend blobs into (G, G) HU in place, one after another, only touching the pixels near them."""
    paint_blobs(canvas, *grid, _table(tuple(blobs), hu, grow_mm), 1)


def mark(canvas: Array, grid: Grid, blobs: Sequence[Blob], grow_mm: float = 0.0) -> None:
    """Raise (G, G) coverage in [0, 1] to that of each blob, in place."""
    paint_blobs(canvas, *grid, _table(tuple(blobs), None, grow_mm), 0)


@lru_cache(maxsize=256)
def _table(blobs: tuple[Blob, ...], hu: float | None, grow_mm: float) -> Array:
    """Return the argument `blobs` of `paint_blobs`, with two lines for a paired blob."""
    lines = []
    for blob in blobs:
        radii = [radius + grow_mm for radius in blob.radii]
        for side in (1, -1) if blob.paired else (1,):
            turn = np.deg2rad(side * blob.angle)
            x, y, z = blob.centre
            value = blob.hu if hu is None else hu
            lines.append((side * x, y, z, *radii, np.cos(turn), np.sin(turn), value, blob.soft))
    return np.array(lines, np.float32).reshape(-1, 10)


class Noise:
    """Smooth noise with mean 0 and sigma 1 at any point, interpolated in a periodic box."""

    def __init__(self, rng: np.random.Generator) -> None:
        band = _band()
        waves = rng.standard_normal((*band.shape, 2), np.float32).view(np.complex64)[..., 0] * band
        values = np.fft.irfftn(waves, (CELLS,) * 3, (0, 1, 2))
        self.cells = (values / values.std()).astype(np.float32).ravel()

    def at(self, points: Grid, wavelength_mm: float) -> Array:
        """Return the noise at points, with wavelengths of about `wavelength_mm`; same shape as the points, float32."""
        flat = [np.ascontiguousarray(axis, np.float32).ravel() for axis in points]
        values = np.empty(flat[0].shape, np.float32)
        interpolate(self.cells, *flat, wavelength_mm, values)
        return values.reshape(points.x.shape)

    def smooth(self, grid: Grid, wavelength_mm: float) -> Array:
        """Approximate `at` for a slice and long wavelengths, interpolating between every fourth or eighth pixel."""
        step = 4 if wavelength_mm < 40 else 8
        return enlarge(self.at(Grid(*(axis[::step, ::step] for axis in grid)), wavelength_mm), step)


def enlarge(images: Array, times: int = 2) -> Array:
    """Enlarge (..., H, W) to (..., times H, times W) by linear interpolation; pixel (i, j) moves to times (i, j)."""
    *leading, height, width = images.shape
    flat = np.ascontiguousarray(images, np.float32).reshape(-1, height, width)
    large = np.empty((len(flat), times * height, times * width), np.float32)
    enlarge_all(flat, times, large)
    return large.reshape(*leading, *large.shape[1:])


@cache
def _band() -> Array:
    """Return the spectrum of the noise in the layout of `irfftn`, (64, 64, 33) float32."""
    each = np.fft.fftfreq(CELLS)
    length = np.sqrt(each[:, None, None] ** 2 + each[:, None] ** 2 + np.fft.rfftfreq(CELLS) ** 2)
    return np.exp(-np.square((length - 0.15) / 0.04)).astype(np.float32)

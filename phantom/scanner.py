"""The phantom's CT scanner: positions of the slices, pose of the head, noise, and stored values."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from phantom.anatomy import Layers, Surfaces
from phantom.compiled import Array, digitise, join
from phantom.shapes import Grid
from phantom.tissue import AIR

SIDE = 512
PADDING = -2000  # stored outside the scan circle, without PixelPaddingValue: -3024 HU with an intercept of -1024


@dataclass(frozen=True, slots=True)
class Coding:
    """The encoding of HU: stored = HU - intercept, clipped to the range of the bits."""

    bits_stored: int
    signed: bool
    intercept: int

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest stored value."""
        low = -(1 << (self.bits_stored - 1)) if self.signed else 0
        return low, low + (1 << self.bits_stored) - 1


# The codings of the RSNA 2019 files, with their approximate shares.
CODINGS = (
    Coding(12, signed=False, intercept=-1024),
    Coding(16, signed=True, intercept=-1024),
    Coding(16, signed=True, intercept=0),
    Coding(12, signed=True, intercept=0),
    Coding(16, signed=True, intercept=-1000),
)
CODING_SHARES = (0.50, 0.34, 0.08, 0.04, 0.04)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The geometry of a series.

    Attributes:
        positions: (N, 3) float64, ImagePositionPatient of each slice, mm, foot to head. The gantry is tilted but the
            table moves along z, so x and y are the same for all slices.
        orientation: ImageOrientationPatient of all slices.
        spacing_mm: between pixel centres in both directions.
    """

    positions: Array
    orientation: tuple[float, float, float, float, float, float]
    spacing_mm: float


@dataclass(frozen=True, slots=True)
class Pose:
    """The pose of the head in the scanner: head = turn @ (patient - origin) / size, in mm.

    Attributes:
        turn: (3, 3) rotation matrix.
        origin: (3,) mm.
        size: scale of the head.
    """

    turn: Array
    origin: Array
    size: float

    def grid(self, geometry: Geometry, position: Array) -> Grid:
        """Return the head coordinates of every second pixel of the slice at `position`."""
        right, down = np.reshape(geometry.orientation, (2, 3))
        step = np.arange(0, SIDE, 2) * geometry.spacing_mm / self.size
        start = self.turn @ (position - self.origin) / self.size
        rows = (start + (self.turn @ down) * step[:, None]).astype(np.float32)
        columns = ((self.turn @ right) * step[:, None]).astype(np.float32)
        return Grid(*(rows[:, i, None] + columns[:, i] for i in range(3)))


def draw_geometry(rng: np.random.Generator, origin: Array, size: float) -> Geometry:
    """Draw slices from below the skull base to above the vertex; 92 % of studies are tilted, 44 % unevenly spaced."""
    tilt = np.deg2rad(rng.uniform(4, 23)) if rng.random() < 0.92 else 0.0
    bottom, top = size * rng.uniform(-50, -34), size * rng.uniform(95, 104)
    if rng.random() < 0.44:
        below = np.arange(bottom, rng.uniform(-15, 25), rng.uniform(2.5, 4.0))
        above = np.arange(below[-1] + rng.uniform(1, 5), top, rng.uniform(5.0, 7.5))
        along = np.concatenate([below, above])
    else:
        along = np.arange(bottom, top, rng.choice((2.5, 3.0, 4.0, 5.0, 5.0, 5.0)))
    if not 20 <= len(along) <= 60:
        along = np.linspace(bottom, top, int(np.clip(len(along), 20, 60)))
    field_mm = size * rng.uniform(232, 252)
    corner = field_mm / 2 * np.array([-1.0, -np.cos(tilt), np.sin(tilt)])
    positions = origin + corner + along[:, None] * (0, 0, 1 / np.cos(tilt))
    return Geometry(positions, (1.0, 0.0, 0.0, 0.0, float(np.cos(tilt)), float(-np.sin(tilt))), field_mm / SIDE)


def draw_pose(rng: np.random.Generator, geometry: Geometry, origin: Array, size: float) -> Pose:
    """Draw a pose: the gantry nearly follows the planes of the head, which is slightly rotated and off-centre."""
    pitch = np.arcsin(-geometry.orientation[5]) + np.deg2rad(rng.normal(0, 3.5))
    roll, yaw = np.deg2rad(rng.normal(0, 2.0)), np.deg2rad(rng.normal(0, 4.0))
    turn = _rotation(2, yaw) @ _rotation(1, roll) @ _rotation(0, pitch)
    return Pose(turn, origin + rng.normal(0, (4, 4, 0)), size)


def _rotation(axis: int, angle: float) -> Array:
    """Return the (3, 3) rotation matrix about an axis."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


class Scanner:
    """Scans the head: adds head holder, noise and scan circle, and converts to stored values."""

    def __init__(self, rng: np.random.Generator, geometry: Geometry, coding: Coding) -> None:
        side_mm = (np.arange(SIDE, dtype=np.float32) - SIDE // 2) * np.float32(geometry.spacing_mm)
        self._side_mm = side_mm
        self._holder = _holder(side_mm, rng)
        outside = np.hypot(side_mm, side_mm[:, None]) > side_mm[-1]
        self._outside = outside if coding.signed and rng.random() < 0.7 else None
        self._tiles = [noise_tile(rng) for _ in range(2)]
        self._sigma = np.float32(rng.uniform(2.2, 4.2) / np.sqrt(2))
        self._coding = coding

    def expose(self, layers: Layers, bones: Surfaces, rng: np.random.Generator) -> Array:
        """Combine the layers of one slice at full size and return its stored values, (512, 512) int16.

        Unsigned values have 12 bits, so they fit.
        """
        image = np.empty((SIDE, SIDE), np.float32)
        join((*layers[:3], *bones[:5]), self._holder, image)
        if layers.brain.max() > 3000:
            image += self._streaks(layers.brain)
        (low, high), intercept = self._coding.limits, self._coding.intercept
        stored = np.empty((SIDE, SIDE), np.int16)
        rolls = rng.integers(0, SIDE, 4)
        digitise(image, *self._tiles, rolls, self._sigma, intercept, max(low, -1024 - intercept), high, stored)
        if self._outside is not None:
            stored[self._outside] = PADDING
        return stored

    def _streaks(self, brain: Array) -> Array:
        """Return bright and dark streaks around the densest point, which is metal, (512, 512) HU."""
        row, column = (2 * int(i) for i in np.unravel_index(int(brain.argmax()), brain.shape))
        y, x = self._side_mm[:, None] - self._side_mm[row], self._side_mm - self._side_mm[column]
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
        return 240 * np.cos(9 * angle + 2 * np.sin(3 * angle)) * np.exp(-radius / 28)


def _holder(side_mm: Array, rng: np.random.Generator) -> Array:
    """Return the head holder and its foam, the same in all slices, and air elsewhere, (512, 512) HU."""
    x, y = side_mm, side_mm[:, None] - np.float32(rng.uniform(2, 10))
    ring = np.cbrt(np.abs(x / 100) ** 3 + np.abs(y / 98) ** 3)
    shell = np.clip(1.7 - np.abs(ring - 1) * 90, 0, 1) * np.clip((y + np.float32(rng.uniform(-20, 20))) / 3, 0, 1)
    foam = np.clip((1 - ring) * 50, 0, 1) * np.clip((y - 20) / 3, 0, 1)
    return (AIR + 45 * foam + shell * rng.uniform(700, 1250)).astype(np.float32)


def noise_tile(rng: np.random.Generator) -> Array:
    """Return the noise of a soft-tissue kernel, (512, 512) float32 of sigma 1, periodic so that it can be rolled.

    Source: autocorrelation at 1, 2 and 3 pixels of white matter in a head CT (GE HiSpeed, STD+): 0.65, 0.13, -0.02.
    """
    power = _noise_power()
    waves = rng.standard_normal((*power.shape, 2), np.float32).view(np.complex64)[..., 0] * power
    tile = np.fft.irfft2(waves, (SIDE, SIDE))
    return (tile / tile.std()).astype(np.float32)


@cache
def _noise_power() -> Array:
    """Return the spectrum of the noise in the layout of `irfft2`, (512, 257) float32."""
    length = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    return (np.sqrt(length) * np.exp(-np.square(length / 0.21))).astype(np.float32)

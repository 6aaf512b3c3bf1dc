"""This file has what a slice of the phantom is painted with: coordinates, ellipsoids, smooth noise.

All arrays of one slice are float32 of shape (G, G).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Array = np.ndarray
CELLS = 64  # along one side of the noise box


class Grid(NamedTuple):
    """Head coordinates of the pixel centres of one slice, mm, (G, G) float32 each."""

    x: Array
    y: Array
    z: Array


class Blob(NamedTuple):
    """An ellipsoid, turned by `angle` degrees about z (its mirror image the other way), blended over `soft` mm."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    angle: float = 0.0
    hu: float = 0.0
    soft: float = 1.2
    paired: bool = True


def draw(canvas: Array, grid: Grid, blob: Blob, hu: float | None = None, grow_mm: float = 0.0) -> None:
    """Blend a blob into (G, G) HU in place; only the pixels near it are touched."""
    value = np.float32(blob.hu if hu is None else hu)
    for window, cover in covers(grid, blob, grow_mm):
        part = canvas[window]
        part += cover * (value - part)


def mark(canvas: Array, grid: Grid, blob: Blob, grow_mm: float = 0.0) -> None:
    """Raise (G, G) coverage in [0, 1] to the blob's own, in place."""
    for window, cover in covers(grid, blob, grow_mm):
        np.maximum(canvas[window], cover, out=canvas[window])


def covers(grid: Grid, blob: Blob, grow_mm: float = 0.0) -> Iterator[tuple[tuple[slice, slice], Array]]:
    """The window of each side of a blob that the slice meets, and the coverage in it."""
    reach = max(blob.radii[:2]) + grow_mm + 6  # the head's turn and the warp bend rows and columns by less than 6 mm
    middle, last = grid.x.shape[0] // 2, grid.x.shape[0] - 1
    across, down = grid.x[middle], grid.y[:, middle]
    top, row, bottom = np.searchsorted(down, blob.centre[1] + np.array((-reach, 0, reach)))
    for side in (1, -1) if blob.paired else (1,):
        left, column, right = np.searchsorted(across, side * blob.centre[0] + np.array((-reach, 0, reach)))
        over = abs(float(grid.z[min(row, last), min(column, last)]) - blob.centre[2])
        if over < blob.radii[2] + grow_mm + 2 + 0.3 * reach:  # slices lean by less than 0.3 in the head
            window = (slice(int(top), int(bottom)), slice(int(left), int(right)))
            yield window, coverage(Grid(*(axis[window] for axis in grid)), blob, side, grow_mm)


def coverage(grid: Grid, blob: Blob, side: int = 1, grow_mm: float = 0.0) -> Array:
    """Share of each pixel inside the blob, in [0, 1]."""
    turn = np.deg2rad(side * blob.angle)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    dx, dy = grid.x - np.float32(side * blob.centre[0]), grid.y - np.float32(blob.centre[1])
    rx, ry, rz = (np.float32(radius + grow_mm) for radius in blob.radii)
    q = np.square((c * dx + s * dy) / rx) + np.square((c * dy - s * dx) / ry)
    q += np.square((grid.z - np.float32(blob.centre[2])) / rz)
    depth = (1 - np.sqrt(q)) * min(rx, ry, rz)
    return np.clip(depth / np.float32(blob.soft) + np.float32(0.5), 0, 1)


class Noise:
    """Smooth random values at any point, of mean 0, sigma 1: a periodic box of cells, interpolated."""

    def __init__(self, rng: np.random.Generator) -> None:
        side = CELLS
        waves = np.fft.fftfreq(side)[:, None, None] ** 2 + np.fft.fftfreq(side)[:, None] ** 2
        length = np.sqrt(waves + np.fft.rfftfreq(side) ** 2)
        band = np.exp(-np.square((length - 0.15) / 0.04))
        values = np.fft.irfftn(np.fft.rfftn(rng.standard_normal((side,) * 3)) * band, (side,) * 3, (0, 1, 2))
        self._cells = (values / values.std()).astype(np.float32).ravel()

    def at(self, points: Grid, wavelength_mm: float) -> Array:
        """Values at the points, their ups and downs about `wavelength_mm` apart; same shape, float32."""
        scale = np.float32(1 / (0.15 * wavelength_mm))
        low, part = [], []
        for axis in points:
            cell = axis * scale + np.float32(10 * CELLS)
            whole = cell.astype(np.int32)
            part.append(cell - whole)
            low.append(whole % CELLS)
        (i, j, k), (a, b, c) = low, part
        row, plane = CELLS, CELLS * CELLS
        i0, i1, j0, j1 = i * plane, (i + 1) % CELLS * plane, j * row, (j + 1) % CELLS * row
        k1 = (k + 1) % CELLS
        take = self._cells.take
        edges = [take(p + q + k) * (1 - c) + take(p + q + k1) * c for p in (i0, i1) for q in (j0, j1)]
        near, far = edges[0] * (1 - b) + edges[1] * b, edges[2] * (1 - b) + edges[3] * b
        return near * (1 - a) + far * a

    def smooth(self, grid: Grid, wavelength_mm: float) -> Array:
        """As `at` for a whole slice and long wavelengths: taken at every fourth pixel and interpolated."""
        coarse = self.at(Grid(*(axis[::4, ::4] for axis in grid)), wavelength_mm)
        return enlarge(enlarge(coarse))


def enlarge(image: Array) -> Array:
    """(H, W) -> (2H, 2W) by linear interpolation; pixel (i, j) stays at (2i, 2j)."""
    tall = np.empty((2 * image.shape[0], image.shape[1]), np.float32)
    tall[::2] = image
    tall[1:-1:2] = (image[1:] + image[:-1]) * np.float32(0.5)
    tall[-1] = image[-1]
    wide = np.empty((tall.shape[0], 2 * image.shape[1]), np.float32)
    wide[:, ::2] = tall
    wide[:, 1:-1:2] = (tall[:, 1:] + tall[:, :-1]) * np.float32(0.5)
    wide[:, -1] = tall[:, -1]
    return wide

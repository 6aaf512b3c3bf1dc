"""The elements of painted slices: ellipsoids compared with a plain formula, enlarging, and noise."""

import numpy as np
import pytest

from phantom.shapes import Blob, Grid, Noise, draw, enlarge, mark


def plain_grid(side=64, z=0.0):
    axis = np.arange(side, dtype=np.float32) - side / 2
    return Grid(*(np.ascontiguousarray(part) for part in np.broadcast_arrays(axis, axis[:, None], np.float32(z))))


def coverage(grid, blob):
    """Return the share of each pixel inside an ellipsoid, computed for all pixels."""
    turn, (rx, ry, rz) = np.deg2rad(blob.angle), blob.radii
    dx, dy, dz = (axis - middle for axis, middle in zip(grid, blob.centre, strict=True))
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    depth = (1 - np.sqrt((u / rx) ** 2 + (v / ry) ** 2 + (dz / rz) ** 2)) * min(blob.radii)
    return np.clip(depth / blob.soft + 0.5, 0, 1)


@pytest.mark.parametrize("z", [0.0, 3.0, -4.5, 5.5, 40.0])
def test_a_blob_agrees_with_its_formula(z):
    grid = plain_grid(z=z)
    blob = Blob((4.0, -3.0, 0.0), (12.0, 6.0, 5.0), 25.0, hu=100.0, paired=False)
    cover = coverage(grid, blob)
    if z == 0:
        assert cover.sum() == pytest.approx(np.pi * 12 * 6, rel=0.05)
    canvas = np.zeros((64, 64), np.float32)
    draw(canvas, grid, [blob])
    assert np.allclose(canvas, 100 * cover, atol=1e-3)
    marked = np.full((64, 64), 0.4, np.float32)
    mark(marked, grid, [blob])
    assert np.allclose(marked, np.maximum(cover, 0.4), atol=1e-5)


def test_blobs_are_mirrored_if_paired_and_drawn_in_order():
    grid = plain_grid()
    pair = np.zeros((64, 64), np.float32)
    draw(pair, grid, [Blob((14.0, 0.0, 0.0), (5.0, 8.0, 5.0), 20.0, hu=1.0)])
    assert np.allclose(pair[:, 1:], pair[:, :0:-1], atol=1e-5)
    first, second = (Blob((x, 0.0, 0.0), (6.0, 6.0, 6.0), hu=hu, paired=False) for x, hu in ((-2.0, 50.0), (2.0, 90.0)))
    canvas = np.zeros((64, 64), np.float32)
    draw(canvas, grid, [first, second])
    under = 50 * coverage(grid, first)
    assert np.allclose(canvas, under + coverage(grid, second) * (90 - under), atol=1e-3)
    grown = np.zeros((64, 64), np.float32)
    draw(grown, grid, [first], hu=7.0, grow_mm=3.0)
    assert np.allclose(grown, 7 * coverage(grid, first._replace(radii=(9.0, 9.0, 9.0))), atol=1e-3)


def test_enlarge_interpolates_between_pixels():
    image = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    large = enlarge(image)
    assert large.shape == (16, 12)
    assert np.array_equal(large[::2, ::2], image)
    assert np.allclose(large[1, 1], image[:2, :2].mean())
    wide = enlarge(image, 4)
    assert np.allclose(wide[4, :20:4], image[1, :5])
    assert np.allclose(wide[5, 4:9], np.interp(np.arange(5), [0, 4], 0.75 * image[1, 1:3] + 0.25 * image[2, 1:3]))
    assert np.array_equal(enlarge(np.stack([image, 2 * image]))[1], 2 * large)


def test_noise_is_smooth_with_mean_0_and_sigma_near_1():
    noise = Noise(np.random.default_rng(1))
    grid = Grid(*(40 * axis for axis in plain_grid(64)[:2]), np.zeros((64, 64), np.float32))
    wide = noise.at(grid._replace(z=grid.x * 0.37), 60)
    assert abs(wide.mean()) < 0.1
    assert wide.std() == pytest.approx(0.85, abs=0.2)
    step = noise.at(Grid(*(np.arange(100, dtype=np.float32) * 0.1 + k for k in (0, 50, 90))), 30)
    assert np.abs(np.diff(step)).max() < 0.1

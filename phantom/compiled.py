"""The phantom's loops over pixels, compiled with numba.

Arrays are float32 and C-contiguous; points are (n,) in any order, images (G, G).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int16, int32, int64, njit, types, uint8, void

Array = np.ndarray
IMAGE = float32[:, ::1]
POINTS = float32[::1]
CELLS = 64  # along each axis of the box of noise; a power of 2


def compiled(signature: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Compile a loop for one signature, and cache it on disk.

    Assuming no NaN and ignoring the sign of zeros allows LLVM to vectorise minimum and maximum.
    """
    return njit(signature, cache=True, nogil=True, fastmath={"nnan", "nsz"}, error_model="numpy")


@njit(inline="always")
def clip(value: Any) -> Any:
    """Clip to [0, 1]."""
    return min(max(value, float32(0)), float32(1))


@njit(inline="always")
def value_at(cells: Array, x: float, y: float, z: float, wavelength_mm: float) -> Any:
    """Interpolate the periodic box of noise, with wavelengths of about `wavelength_mm`, at a point in mm."""
    one, middle = float32(1), float32(10 * CELLS)  # so that no coordinate is negative
    scale: Any = one / (float32(0.15) * float32(wavelength_mm))
    u, v, w = float32(x) * scale + middle, float32(y) * scale + middle, float32(z) * scale + middle
    i, j, k = int32(u), int32(v), int32(w)
    a, b, c = u - float32(i), v - float32(j), w - float32(k)
    last, row, plane = CELLS - 1, CELLS, CELLS * CELLS
    i0, j0, k0 = (i & last) * plane, (j & last) * row, k & last
    i1, j1, k1 = ((i + 1) & last) * plane, ((j + 1) & last) * row, (k + 1) & last
    near = (cells[i0 + j0 + k0] * (one - c) + cells[i0 + j0 + k1] * c) * (one - b)
    near += (cells[i0 + j1 + k0] * (one - c) + cells[i0 + j1 + k1] * c) * b
    far = (cells[i1 + j0 + k0] * (one - c) + cells[i1 + j0 + k1] * c) * (one - b)
    far += (cells[i1 + j1 + k0] * (one - c) + cells[i1 + j1 + k1] * c) * b
    return near * (one - a) + far * a


@compiled(void(POINTS, POINTS, POINTS, POINTS, float32, POINTS))
def interpolate(cells: Array, x: Array, y: Array, z: Array, wavelength_mm: float, out: Array) -> None:
    """Compute the value of the box of noise at each of n points."""
    for n in range(len(x)):
        out[n] = value_at(cells, x[n], y[n], z[n], wavelength_mm)


@njit(inline="always")
def _window(axis: Array, low: float, high: float) -> tuple[int, int]:
    """Return first and stop of the ascending coordinates in [low, high)."""
    first = 0
    while first < len(axis) and axis[first] < low:
        first += 1
    last = first
    while last < len(axis) and axis[last] < high:
        last += 1
    return first, last


@compiled(void(IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, uint8))
def paint_blobs(canvas: Array, x: Array, y: Array, z: Array, blobs: Array, blend: int) -> None:
    """Paint ellipsoids one after another, in place, only touching the pixels near them.

    Args:
        canvas: HU or coverage.
        x, y, z: head coordinates, mm; x ascends along rows, y along columns, both almost linearly.
        blobs: (n, 10): centre, radii, cosine and sine of the rotation about z, HU, and width of the blurred edge in mm.
        blend: 1 to blend HU by coverage, 0 to set the canvas to the maximum of it and the coverage.
    """
    middle, side = canvas.shape[0] // 2, canvas.shape[0]
    across, down = x[middle], y[:, middle].copy()
    for n in range(len(blobs)):
        cx, cy, cz, rx, ry, rz, cosine, sine, hu, soft = blobs[n]
        reach = max(rx, ry) + float32(5)  # rotation and warp of the head shift rows and columns by less
        top, bottom = _window(down, cy - reach, cy + reach)
        left, right = _window(across, cx - reach, cx + reach)
        if top == bottom or left == right:
            continue
        at_row, at_column = min((top + bottom) // 2, side - 1), min((left + right) // 2, side - 1)
        if abs(z[at_row, at_column] - cz) > rz + float32(2) + float32(0.3) * reach:  # the slope of slices is below 0.3
            continue
        smallest = min(rx, ry, rz)
        widest = float32(1) + float32(0.5) * soft / smallest
        for i in range(top, bottom):
            for j in range(left, right):
                dx, dy, dz = x[i, j] - cx, y[i, j] - cy, (z[i, j] - cz) / rz
                u, v = (cosine * dx + sine * dy) / rx, (cosine * dy - sine * dx) / ry
                q = u * u + v * v + dz * dz
                if q >= widest * widest:
                    continue
                cover = clip((float32(1) - math.sqrt(q)) * smallest / soft + float32(0.5))
                if blend:
                    canvas[i, j] += cover * (hu - canvas[i, j])
                else:
                    canvas[i, j] = max(canvas[i, j], cover)


@compiled(void(IMAGE, IMAGE, IMAGE, POINTS, POINTS, IMAGE))
def squared_distance(x: Array, y: Array, z: Array, centre: Array, radii: Array, out: Array) -> None:
    """Compute the squared distance of each point from a centre (3,), in units of radii (3,)."""
    cx, cy, cz = centre
    rx, ry, rz = radii
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            u, v, w = (x[i, j] - cx) / rx, (y[i, j] - cy) / ry, (z[i, j] - cz) / rz
            out[i, j] = u * u + v * v + w * w


@compiled(void(float32[:, :, ::1], int64, float32[:, :, ::1]))
def enlarge_all(images: Array, times: int, out: Array) -> None:
    """Enlarge (n, H, W) to (n, times H, times W) by linear interpolation; pixel (i, j) moves to times (i, j)."""
    count, height, width = images.shape
    row, step = np.empty(width + 1, np.float32), float32(1) / float32(times)
    for n in range(count):
        for i in range(times * height):
            above, below = images[n, i // times], images[n, min(i // times + 1, height - 1)]
            part = float32(i % times) * step
            for j in range(width):
                row[j] = above[j] + part * (below[j] - above[j])
            row[width] = row[width - 1]
            for shift in range(times):
                share_of_next = float32(shift) * step
                for j in range(width):
                    out[n, i, j * times + shift] = row[j] + share_of_next * (row[j + 1] - row[j])


@njit(inline="always")
def _inside(skin: Array) -> tuple[int, int]:
    """Return first and stop of the pixels of a row that the head may touch, given their depths below the skin."""
    left, right = 0, len(skin) - 1
    while left < right and skin[left] < -1 and skin[left + 1] < -1:
        left += 1
    while left < right and skin[right - 1] < -1 and skin[right] < -1:
        right -= 1
    return left, right


@compiled(void(types.UniTuple(IMAGE, 8), IMAGE, IMAGE))
def join(layers: tuple[Array, ...], around: Array, out: Array) -> None:
    """Combine the layers of one slice at twice their size, (2G, 2G) HU.

    Edges are computed at full size from the smooth surfaces, so they are as sharp as those of a scanner.

    Args:
        layers: outer, bone and brain; skin, cavity, across, wall_mm and soft as in `Surfaces`.
        around: (2G, 2G) HU outside the head.
        out: the result.
    """
    side = layers[0].shape[0]
    half, full = float32(0.5), float32(1)
    rows = np.empty((8, side + 1), np.float32)
    for i in range(2 * side):
        above, below = i // 2, min((i + 1) // 2, side - 1)
        for n in range(8):
            row, upper, lower = rows[n], layers[n][above], layers[n][below]
            for j in range(side):
                row[j] = (upper[j] + lower[j]) * half
            row[side] = row[side - 1]
        left, right = _inside(rows[3])
        out[i] = around[i]
        outer, bone, brain, skin, cavity, across, wall, soft = rows[:, left : right + 1]
        into = out[i, 2 * left : 2 * right]
        for odd in range(2):
            for j in range(len(skin) - 1):
                k = j + odd
                hard = (full - (across[j] + across[k]) * half) * (wall[j] + wall[k]) / (soft[j] + soft[k])
                inside = (cavity[j] + cavity[k]) / (soft[j] + soft[k])
                hu = (outer[j] + outer[k]) * half
                hu += clip(hard + half) * ((bone[j] + bone[k]) * half - hu)
                hu += clip(inside + half) * ((brain[j] + brain[k]) * half - hu)
                beyond = into[2 * j + odd]
                into[2 * j + odd] = beyond + clip((skin[j] + skin[k]) * (half / float32(0.9)) + half) * (hu - beyond)


@njit(inline="always")
def _roll(row: Array, right: int, into: Array, keep: Any) -> None:
    """Set `into` to `keep` times its values plus a row rolled to the right."""
    # With slices, numba need not check each index for being negative.
    start, rest, end = row[len(row) - right :], into[right:], into[:right]
    for j in range(len(end)):
        end[j] = keep * end[j] + start[j]
    for j in range(len(rest)):
        rest[j] = keep * rest[j] + row[j]


@compiled(void(IMAGE, IMAGE, IMAGE, int64[::1], float32, float32, float32, float32, int16[:, ::1]))
def digitise(
    image: Array,
    tile: Array,
    other: Array,
    rolls: Array,
    sigma: float,
    intercept: float,
    low: float,
    high: float,
    out: Array,
) -> None:
    """Add noise to (H, W) HU, round, and clip to stored values.

    Args:
        image: HU.
        tile, other: periodic noise of sigma 1, (H, W); their sum is scaled by `sigma`.
        rolls: (4,), by how many pixels each of them is rolled down and to the right.
        sigma: factor of the noise, HU.
        intercept: HU = stored + intercept.
        low, high: limits of stored values.
        out: the result.
    """
    height, width = image.shape
    noise = np.empty(width, np.float32)
    for i in range(height):
        one, two = tile[(i - rolls[0]) % height], other[(i - rolls[2]) % height]
        _roll(one, rolls[1], noise, float32(0))
        _roll(two, rolls[3], noise, float32(1))
        row, into = image[i], out[i]
        for j in range(width):
            value = min(max(row[j] + sigma * noise[j] - intercept, low), high)
            into[j] = int16(int32(value + float32(40000.5)) - 40000)  # truncation rounds positive numbers

"""The tissue in every pixel of a head, as loops that numba compiles: cortex, membranes, soft parts.

Images are float32 (G, G), C-contiguous; coordinates and depths are mm. Loops are written for single pixels.
"""

import math
from typing import Any

from numba import float32, float64, njit, void

from phantom.compiled import IMAGE, POINTS, Array, compiled, share, value_at

AIR, FAT, MUSCLE, SKIN = -1000.0, -100.0, 56.0, 45.0
CSF, WHITE, GREY = 7.0, 28.0, 36.5


def tentorium_height(x: Any, y: Any) -> Any:
    """Height of the tent between cerebrum and cerebellum: highest in the middle, mm; numbers or arrays."""
    return 22 - 0.48 * abs(x) - 0.10 * abs(y - 36)


_tent = njit(inline="always")(tentorium_height)


@njit(inline="always")
def _under_tentorium(x: float, y: float, z: float) -> Any:
    """1 where the cerebellum and the brain stem are, 0 in the cerebrum."""
    return share((_tent(x, y) - z) / 2) * share((y - 8 - 0.40 * abs(x)) / 4)


@compiled(void(IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE))
def lay_matter(x: Array, y: Array, z: Array, cortex: Array, hind: Array, out: Array) -> None:
    """Fill in HU of white and grey matter, and where the cerebellum and the brain stem are: 1, 0 in the cerebrum."""
    grey = float32(GREY - WHITE)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            below = float32(_under_tentorium(x[i, j], y[i, j], z[i, j]))
            hu = float32(WHITE) + grey * cortex[i, j]
            hind[i, j] = below
            out[i, j] = hu + below * (float32(34) - hu)


@compiled(void(IMAGE, IMAGE, IMAGE))
def flood(brain: Array, ventricles: Array, cisterns: Array) -> None:
    """Fill the spaces in the brain with fluid, in place."""
    for i in range(brain.shape[0]):
        for j in range(brain.shape[1]):
            brain[i, j] += max(ventricles[i, j], cisterns[i, j]) * (float32(CSF) - brain[i, j])


@compiled(void(IMAGE, IMAGE, IMAGE))
def harden(across: Array, grain: Array, out: Array) -> None:
    """Fill in HU of bone: two dense tables, and marrow between them.

    Args:
        across: as in `Surfaces`. grain: noise of short waves.
    """
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            table = share(abs(float32(2) * across[i, j] - float32(1)) * float32(1.6) - float32(0.4))
            out[i, j] = float32(560) + float32(850) * table + float32(150) * grain[i, j]


@njit(inline="always")
def _fissure(x: float, y: float, z: float) -> float:
    """Distance from the cleft between the halves of the brain, mm; far where the corpus callosum joins them."""
    around = math.sqrt(((y - 4) / 52) ** 2 + ((z - 6) / 40) ** 2)
    return abs(x) + 60 * share(1.05 - around)


@njit(inline="always")
def _is_core(x: float, y: float, z: float) -> bool:
    """Whether a point lies in the middle of the brain, which has no cortex."""
    return (x / 32) ** 2 + ((y - 2) / 38) ** 2 + ((z - 12) / 22) ** 2 < 1


_GRIDS = (IMAGE, IMAGE, IMAGE)


@compiled(void(*_GRIDS, *_GRIDS, *_GRIDS, POINTS, IMAGE, float64, IMAGE, IMAGE))
def fold(
    x: Array,
    y: Array,
    z: Array,
    foot_x: Array,
    foot_y: Array,
    foot_z: Array,
    cavity: Array,
    pressed: Array,
    swollen: Array,
    cells: Array,
    slow: Array,
    atrophy: float,
    cortex: Array,
    space: Array,
) -> None:
    """Fill in coverage of the cortical ribbon, and of sulci, fissure and the space around the brain.

    Sulci are the zero lines of smooth noise on the brain's surface, carried inward: they stand upright on it, wander
    along it, and end at their own depth.

    Args:
        foot_x, foot_y, foot_z, cavity: of `Surfaces`.
        pressed, swollen: as for `anatomy.paint`.
        cells: of the noise. slow: noise of long waves at each pixel.
        cortex, space: (G, G) of zeros.
    """
    for i in range(cortex.shape[0]):
        for j in range(cortex.shape[1]):
            u, v, w = x[i, j], y[i, j], z[i, j]
            depth = cavity[i, j] - pressed[i, j]
            fissure = _fissure(u, v, w)
            under = min(depth, fissure)
            if depth <= -2 or under >= 26 or _under_tentorium(u, v, w) >= 0.5 or _is_core(u, v, w):
                continue
            lean, swell = 0.5 * under, swollen[i, j]
            if fissure < depth:
                side = 40.0 if u > 0 else -40.0
                away = 5.6 * abs(value_at(cells, side + 0.3 * v, 0.7 * v + lean, 0.7 * w - lean, 25))
                bottom = 8 + 3 * slow[i, j]
            else:
                a, b, c = foot_x[i, j], foot_y[i, j], foot_z[i, j]
                point = a + 0.2 * (u - a), b + 0.3 * (v - b), c + 0.1 * (w - c) + 0.25 * lean
                away = 4.0 * abs(value_at(cells, point[0], point[1], point[2], 25))
                bottom = 15 + 5 * slow[i, j]
            width = (0.3 + 1.3 * atrophy + swell) * (1.2 - under / bottom)
            rim = under - (2.2 * atrophy + 0.5 * swell - 0.2)
            pia = min(rim, away - max(width, 0.0) + max(under - bottom, 0.0))
            cortex[i, j] = share((4.4 - pia) / 3.0)
            space[i, j] = share(0.5 - min(rim, away - width) / 1.2)


@compiled(void(IMAGE, IMAGE, IMAGE, IMAGE, IMAGE))
def add_membranes(brain: Array, x: Array, y: Array, z: Array, depth: Array) -> None:
    """Falx, tentorium and the sinuses at their edges, in place: thin and a little brighter than cortex.

    Then beam hardening: bright under bone, dark between the petrous bones.
    """
    for i in range(brain.shape[0]):
        for j in range(brain.shape[1]):
            u, v, w, d = abs(x[i, j]), y[i, j], z[i, j], depth[i, j]
            if d < -12:
                continue
            hu = brain[i, j]
            around = ((v - 4) / 60) ** 2 + ((w - 4) / 46) ** 2
            if w > 8:
                hu += 0.68 * share(1.3 - u) * share(6 * (around - 1)) * (43 - hu)
            if u < 54:
                sheet = share(1.5 - abs(w - _tent(u, v)))
                hu += 0.68 * sheet * share((v - 14 - 0.45 * u) / 4) * (43 - hu)
            if w > 5:
                hu += 0.85 * share(4.2 - u - 0.6 * d) * (48 - hu)
            if d < 25:
                hu += 7 * math.exp(-((d / 7) ** 2))
            if u < 45 and abs(v - 10) < 40 and abs(w + 10) < 30:
                hu -= 6 * math.exp(-(((v - 10) / 12) ** 2) - ((w + 10) / 9) ** 2)
            brain[i, j] = hu


@compiled(void(*_GRIDS, IMAGE, IMAGE, IMAGE, IMAGE))
def clothe(x: Array, y: Array, z: Array, below: Array, rough: Array, grain: Array, out: Array) -> None:
    """Fill in HU of skin, fat and muscle inside the outline of the head.

    Args:
        below: depth below the skin. rough, grain: noise of long and of short waves.
    """
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            d, coarse, fine = below[i, j], rough[i, j], grain[i, j]
            deep = (abs(x[i, j]) - 34) / 20 + abs(y[i, j] - 10) / 60 + (2 - z[i, j]) / 16
            seams = share(3.2 * abs(coarse) - 2.6) + 0.12 * share(1 - 3 * abs(fine + 0.3 * coarse))
            muscle = share(d / 3 - 1.6) * share(deep) * share(1 - 0.8 * seams)
            hu = FAT + (MUSCLE + 5 * fine - FAT) * muscle
            out[i, j] = hu + share(2.4 - d) * (SKIN - hu)

"""The tissue of each pixel of a head, as loops compiled with numba: cortex, membranes, bone and scalp.

Images are float32 (G, G), C-contiguous; coordinates and depths are in mm.
"""

import math
from typing import Any

from numba import float32, float64, njit, void

from phantom.compiled import IMAGE, POINTS, Array, clip, compiled, value_at

AIR, FAT, MUSCLE, SKIN = -1000.0, -100.0, 56.0, 45.0
CSF, WHITE, GREY = 7.0, 28.0, 36.5


def tentorium_height(x: Any, y: Any) -> Any:
    """Return the height of the tentorium, between cerebrum and cerebellum, mm, for numbers or arrays."""
    return 22 - 0.48 * abs(x) - 0.10 * abs(y - 36)


_tent = njit(inline="always")(tentorium_height)


@njit(inline="always")
def _under_tentorium(x: float, y: float, z: float) -> Any:
    """Return 1 in the cerebellum and the brain stem, 0 in the cerebrum."""
    return clip((_tent(x, y) - z) / 2) * clip((y - 8 - 0.40 * abs(x)) / 4)


@compiled(void(IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE))
def paint_matter(x: Array, y: Array, z: Array, cortex: Array, hind: Array, out: Array) -> None:
    """Compute the HU of white and grey matter, and `hind`: 1 in the cerebellum and the brain stem, else 0."""
    grey = float32(GREY - WHITE)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            below = float32(_under_tentorium(x[i, j], y[i, j], z[i, j]))
            hu = float32(WHITE) + grey * cortex[i, j]
            hind[i, j] = below
            out[i, j] = hu + below * (float32(34) - hu)


@compiled(void(IMAGE, IMAGE, IMAGE))
def add_fluid(brain: Array, ventricles: Array, cisterns: Array) -> None:
    """Fill ventricles and cisterns with fluid, in place."""
    for i in range(brain.shape[0]):
        for j in range(brain.shape[1]):
            brain[i, j] += max(ventricles[i, j], cisterns[i, j]) * (float32(CSF) - brain[i, j])


@compiled(void(IMAGE, IMAGE, IMAGE))
def paint_bone(across: Array, grain: Array, out: Array) -> None:
    """Compute the HU of bone: two dense tables, and marrow between them.

    Args:
        across: see `Surfaces`.
        grain: noise with short wavelengths.
        out: the result.
    """
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            table = clip(abs(float32(2) * across[i, j] - float32(1)) * float32(1.6) - float32(0.4))
            out[i, j] = float32(560) + float32(850) * table + float32(150) * grain[i, j]


@njit(inline="always")
def _fissure(x: float, y: float, z: float) -> float:
    """Return the distance from the interhemispheric fissure, mm; it is large at the corpus callosum."""
    around = math.sqrt(((y - 4) / 52) ** 2 + ((z - 6) / 40) ** 2)
    return abs(x) + 60 * clip(1.05 - around)


@njit(inline="always")
def _is_core(x: float, y: float, z: float) -> bool:
    """Return whether a point is in the core of the brain, which has no cortex."""
    return (x / 32) ** 2 + ((y - 2) / 38) ** 2 + ((z - 12) / 22) ** 2 < 1


_GRIDS = (IMAGE, IMAGE, IMAGE)


@compiled(void(*_GRIDS, *_GRIDS, *_GRIDS, POINTS, IMAGE, float64, IMAGE, IMAGE))
def fold_cortex(
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
    """Compute the coverage of the cortical ribbon, and of sulci, fissure and the space around the brain.

    Sulci are the zero crossings of smooth noise on the surface of the brain, extended inward at a right angle to it, to
    varying depths.

    Args:
        x, y, z: head coordinates.
        foot_x, foot_y, foot_z, cavity: see `Surfaces`.
        pressed, swollen: see `anatomy.paint`.
        cells: of the noise.
        slow: noise with long wavelengths at each pixel.
        atrophy: see `Head`.
        cortex, space: the results, (G, G), initially zeros.
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
            cortex[i, j] = clip((4.4 - pia) / 3.0)
            space[i, j] = clip(0.5 - min(rim, away - width) / 1.2)


@compiled(void(IMAGE, IMAGE, IMAGE, IMAGE, IMAGE))
def add_membranes(brain: Array, x: Array, y: Array, z: Array, depth: Array) -> None:
    """Add falx, tentorium and the venous sinuses at their edges, in place: thin and slightly brighter than cortex.

    Then add beam hardening: bright below bone, dark between the petrous bones.
    """
    for i in range(brain.shape[0]):
        for j in range(brain.shape[1]):
            u, v, w, d = abs(x[i, j]), y[i, j], z[i, j], depth[i, j]
            if d < -12:
                continue
            hu = brain[i, j]
            around = ((v - 4) / 60) ** 2 + ((w - 4) / 46) ** 2
            if w > 8:
                hu += 0.68 * clip(1.3 - u) * clip(6 * (around - 1)) * (43 - hu)
            if u < 54:
                sheet = clip(1.5 - abs(w - _tent(u, v)))
                hu += 0.68 * sheet * clip((v - 14 - 0.45 * u) / 4) * (43 - hu)
            if w > 5:
                hu += 0.85 * clip(4.2 - u - 0.6 * d) * (48 - hu)
            if d < 25:
                hu += 7 * math.exp(-((d / 7) ** 2))
            if u < 45 and abs(v - 10) < 40 and abs(w + 10) < 30:
                hu -= 6 * math.exp(-(((v - 10) / 12) ** 2) - ((w + 10) / 9) ** 2)
            brain[i, j] = hu


@compiled(void(*_GRIDS, IMAGE, IMAGE, IMAGE, IMAGE))
def paint_scalp(x: Array, y: Array, z: Array, below: Array, rough: Array, grain: Array, out: Array) -> None:
    """Compute the HU of skin, fat and muscle inside the outline of the head.

    Args:
        x, y, z: head coordinates.
        below: depth below the skin.
        rough, grain: noise with long and short wavelengths.
        out: the result.
    """
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            d, coarse, fine = below[i, j], rough[i, j], grain[i, j]
            deep = (abs(x[i, j]) - 34) / 20 + abs(y[i, j] - 10) / 60 + (2 - z[i, j]) / 16
            seams = clip(3.2 * abs(coarse) - 2.6) + 0.12 * clip(1 - 3 * abs(fine + 0.3 * coarse))
            muscle = clip(d / 3 - 1.6) * clip(deep) * clip(1 - 0.8 * seams)
            hu = FAT + (MUSCLE + 5 * fine - FAT) * muscle
            out[i, j] = hu + clip(2.4 - d) * (SKIN - hu)

"""Model of a head: the HU of each tissue at any point, from smooth implicit surfaces.

Head coordinates are in mm: x to the patient's left, y to the back, z up; (0, 0, 0) is in the sella. All arrays of a
slice are float32 of shape (G, G). Depths are in mm, positive inside.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from phantom.compiled import Array
from phantom.shapes import Blob, Grid, Noise, draw, enlarge, mark
from phantom.tissue import AIR, FAT, WHITE, add_fluid, add_membranes, fold_cortex, paint_bone, paint_matter, paint_scalp

# Sizes and positions follow axial atlas plates of the adult head; each patient's warp and scale vary them.
VENTRICLES = (
    Blob((8.5, -27, 27), (4.4, 13, 9), 14),
    Blob((11.5, -3, 35), (5.0, 27, 6.5), -8),
    Blob((18, 18, 31), (5.4, 14, 8), -32),
    Blob((24, 29, 25), (6.0, 11, 11), -18),
    Blob((26, 48, 20), (3.0, 14, 4.5), 6),
    Blob((31, 8, -3), (2.2, 13, 2.6), 5),
    Blob((0, -2, 13), (2.3, 14, 11), paired=False),
    Blob((0, 14, 3), (1.3, 2.0, 9), paired=False),
    Blob((0, 30, -13), (6.5, 4.5, 7), paired=False),
)
CISTERNS = (
    Blob((0, -17, 3), (11, 8, 5), paired=False),
    Blob((10, -10, 3), (9, 3.5, 4), 35),
    Blob((0, 26, 8), (10, 2.6, 5), paired=False),
    Blob((13, 21, 6), (1.8, 8, 5), 38),
    Blob((17, 10, 2), (1.5, 9, 6), -12),
    Blob((0, -2, -9), (12, 2.6, 10), paired=False),
    Blob((18, 8, -14), (8, 2.6, 4), 25),
    Blob((0, 67, -24), (6, 7, 9), paired=False),
    Blob((42, -8, 15), (1.3, 15, 12), -8),
    Blob((53, -20, 11), (12, 1.7, 7), -24),
    Blob((53, 6, 23), (11, 1.4, 6), 28),
    Blob((0, 46, 6), (1.8, 12, 4), paired=False),
)
DEEP_GREY = (
    Blob((14, -24, 26), (4.8, 9, 9), 14, 36.5, 2.5),
    Blob((25, -7, 15), (6.8, 16, 10), -16, 36, 3.0),
    Blob((10.5, 8, 19), (8, 14, 10), -22, 35.5, 3.0),
    Blob((40, -8, 15), (2.5, 16, 13), -8, 37, 2.0),
)
PERIVENTRICULAR = Blob((22, -4, 38), (9, 38, 9), -6, soft=10.0)  # white matter that darkens with age
HINDBRAIN = (
    Blob((24, 44, -14), (25, 26, 20), 0, 35, 4.0),
    Blob((0, 46, -12), (8, 22, 20), 0, 36.5, 2.5, paired=False),
    Blob((0, 12, -13), (14, 11, 12), 0, 31, 2.5, paired=False),
    Blob((14, 25, -13), (8, 9, 7), 0, 30, 4.0),
    Blob((0, 12, 3), (15, 9, 9), 0, 32, 2.0, paired=False),
    Blob((0, 22, -32), (7.5, 6.5, 18), 0, 32, 1.5, paired=False),
)
FACE = (
    Blob((33, -64, -3), (18, 22, 16), 24, FAT),
    Blob((23, -40, -3), (8, 17, 9), 34, FAT),
    Blob((43, -55, -3), (1.8, 18, 4), 36, 50),
    Blob((19, -58, -2), (1.7, 18, 4), 10, 50),
    Blob((26, -52, -2), (1.9, 20, 2), 24, 35),
    Blob((33, -73, -2), (13, 13, 13), 0, 55, 0.8),
    Blob((33, -73, -2), (11.5, 11.5, 11.5), 0, 9, 0.8),
    Blob((33, -82, -2), (4.4, 1.8, 4.4), 0, 95, 0.8),
    Blob((46, -48, -3), (1.6, 17, 20), 38, 900),
    Blob((53, -66, -5), (3.4, 6, 15), -35, 1000),
    Blob((7, -82, -2), (6, 4, 12), -25, 700),
    Blob((62, -34, -24), (2.2, 26, 3.2), -10, 900),
    Blob((50, 2, -24), (8, 4.5, 6), 14, 900),
    Blob((48, 2, -46), (2.6, 14, 18), 0, 1000),
    Blob((28, -16, -38), (1.6, 13, 14), 28, 500),
    Blob((45, -12, -40), (6, 15, 16), 10, 60, 2.5),
    Blob((0, 14, -56), (6, 6, 14), 0, 700, paired=False),
    Blob((19, 22, -52), (7, 10, 5), 20, 700),
    Blob((75, 22, -8), (6, 3, 17), 30, 30),
)
SINUSES = (
    Blob((7, -26, -12), (7, 11, 8), 0, AIR, 0.8),
    Blob((8, -84, 20), (8, 3.0, 9), -14, AIR, 0.8),
    Blob((25, -58, -41), (14, 17, 14), 0, AIR, 0.8),
    Blob((0, -26, -44), (11, 11, 18), 0, AIR, 0.8, paired=False),
    Blob((62, 12, -13), (14, 2.4, 2.4), 0, AIR, 0.8),
)
CELLS = (
    (Blob((6, -58, -8), (6.5, 22, 14), 0, soft=1.0), 9.0),
    (Blob((6, -62, -36), (9, 26, 16), 0, soft=1.0), 14.0),
    (Blob((55, 25, -14), (8, 11, 15), -30, soft=2.0), 8.0),
)


@dataclass(frozen=True, slots=True)
class Head:
    """The parameters of a patient's head.

    Attributes:
        half_width, half_length, half_height: of the cranial cavity, mm.
        skull_mm, scalp_mm: thickness.
        atrophy: from 0, young, to 1, old; it widens ventricles, sulci and the space around the brain.
        specks: calcifications, metal and old infarcts.
    """

    half_width: float
    half_length: float
    half_height: float
    skull_mm: float
    scalp_mm: float
    atrophy: float
    specks: tuple[Blob, ...]


class Surfaces(NamedTuple):
    """The surfaces of one slice.

    Attributes:
        skin, cavity: depth below the skin and below the inner table, mm.
        across: position in the bone, from 0 at its inner surface to 1 at its outer surface.
        wall_mm: thickness of the bone.
        soft: width of the blurred edge of the bone, mm, which grows with its slant relative to the slice.
        foot: the point on the inner table above each pixel, or on the skull base below it.
    """

    skin: Array
    cavity: Array
    across: Array
    wall_mm: Array
    soft: Array
    foot: Grid


class Layers(NamedTuple):
    """HU of one slice in three layers, each painted over the full slice, and the spaces that blood can fill.

    Attributes:
        outer: face and scalp, HU.
        bone: skull and its sinuses, HU.
        brain: everything inside the skull, HU.
        ventricles, cisterns: coverage in [0, 1]; cisterns include sulci.
    """

    outer: Array
    bone: Array
    brain: Array
    ventricles: Array
    cisterns: Array


def surfaces(head: Head, grid: Grid, noise: Noise) -> Surfaces:
    """Compute skin, skull and cranial cavity, at every fourth pixel of the grid and then enlarged, as they are smooth.

    Args:
        head: the parameters.
        grid: coordinates of the slice.
        noise: to vary the thickness.
    """
    grid = Grid(*(np.ascontiguousarray(axis[::4, ::4]) for axis in grid))
    x, y, z = grid
    ax = np.abs(x)
    rough = noise.at(grid, 40)
    vault, foot = _vault(head, grid)
    floor, base_mm = _floor(ax, y)
    floor = floor + 1.8 * rough
    crest = np.exp(-np.square((y - 84) / 16) - np.square(x / 18))
    skull_mm = head.skull_mm * (1 + np.float32(0.06) * rough) + 3 * crest * (z < 40)
    cavity = np.minimum(vault, (z - floor) * np.float32(0.8))
    across = np.maximum(-vault / skull_mm, (floor - z) / base_mm)
    lean = np.clip(foot.z / head.half_height, 0, 1)
    low = np.clip((vault - z + floor) / 6, 0, 1)
    soft = 1.0 + 4.5 * np.square(lean) * lean + 2.5 * low
    wall_mm = skull_mm + low * (base_mm - skull_mm)
    below = vault > 0.8 * (z - floor)
    under = (np.where(below, *pair) for pair in ((x, foot.x), (y, foot.y), (floor, foot.z)))
    skin = _skin(head, grid, vault + skull_mm)
    skin, cavity, across, wall_mm, soft, x, y, z = enlarge(np.stack([skin, cavity, across, wall_mm, soft, *under]), 4)
    return Surfaces(skin, cavity, across, wall_mm, soft, Grid(x, y, z))


def _vault(head: Head, grid: Grid) -> tuple[Array, Grid]:
    """Return the depth below an egg-shaped inner table, wider at the back, and its point on the ray from its centre."""
    x, y, z = grid.x, grid.y - 2, grid.z - 15
    width = np.float32(head.half_width) * (1 + np.float32(0.0010) * y - np.float32(0.000010) * np.square(y))
    height = np.where(z > 0, np.float32(head.half_height), np.float32(74))
    total = np.zeros_like(x)
    for part in (x / width, y / np.float32(head.half_length), z / height):
        total += np.abs(part) ** np.float32(2.3)
    scale = np.maximum(total ** np.float32(1 / 2.3), np.float32(0.05))
    radius = np.sqrt(np.square(x) + np.square(y) + np.square(z))
    return radius / scale - radius, Grid(x / scale, y / scale, z / scale)


def _floor(ax: Array, y: Array) -> tuple[Array, Array]:
    """Return the height of the skull base at each point, and the thickness of the bone below it, mm."""
    middle = np.exp(-np.square(np.square((ax - 42) / 29) + np.square((y + 9 - 0.25 * (ax - 37)) / 24)))
    sella = np.exp(-np.square(ax / 18) - np.square((y + 4) / 20))
    roof = np.exp(-np.square((y + 52) / 26)) * np.clip((ax - 8) / 36, 0, 1)
    front = 10 - 30 * middle - 14 * sella + 8 * roof
    bowl = np.square(ax / 53) + np.square((y - 43) / 41)
    hind = -39 + 42 * np.square(bowl) - 40 * np.exp(-np.square(np.square(ax / 14) + np.square((y - 27) / 17)))
    away = (y - 7 - 0.52 * (ax - 12)) * np.float32(0.887)  # from the petrous ridge, which runs outward and back
    petrous = np.clip((ax - 5) / 15, 0, 1)
    ridge = 2 - 0.13 * np.square(away) - 45 * np.square(1 - petrous)
    height = np.maximum(np.minimum(front, hind), np.minimum(ridge, 1))
    thick = 1.8 + 18 * petrous * np.exp(-np.square(away / 13)) + 15 * sella + 8 * np.clip((y - 20) / 20, 0, 1)
    return height, thick


def _skin(head: Head, grid: Grid, skull: Array) -> Array:
    """Return the depth below the skin: scalp over the vault, cheeks and neck below it, and a nose."""
    x, y, z = grid
    ax = np.abs(x)
    temple = np.exp(-np.square((y + 28) / 34) - np.square((z - 6) / 30)) * np.clip((ax - 40) / 20, 0, 1)
    power = np.float32(2.3)
    column = 70 * (1 - ((ax / 70) ** power + np.abs((y + 4) / 85) ** power) ** (1 / power))
    nose = 12 * (1 - np.sqrt(np.square(x / 12) + np.square((y + 88) / 17) + np.square((z + 26) / 20)))
    face = np.maximum(np.minimum(column, (16 - z) * np.float32(0.7)), nose)
    return np.maximum(skull + head.scalp_mm + 7 * temple, face)


def paint(head: Head, grid: Grid, bones: Surfaces, moved: tuple[Array, Array], noise: Noise) -> Layers:
    """Paint one slice without blood.

    Args:
        head: the parameters.
        grid: coordinates of the slice.
        bones: surfaces of the slice.
        moved: mm by which the brain is pushed inward, and mm by which sulci and cisterns are widened.
        noise: to vary the tissue.
    """
    grain = noise.smooth(grid, 14)
    outer, bone = np.empty_like(grid.x), np.empty_like(grid.x)
    paint_scalp(*grid, bones.skin, noise.smooth(grid._replace(y=0.4 * grid.y), 24), grain, outer)
    draw(outer, grid, FACE)
    paint_bone(bones.across, grain, bone)
    _carve_air((outer, bone), grid, noise)
    ventricles, cisterns, cortex = _spaces(head, grid, bones, moved, noise)
    brain = _brain(head, grid, cortex, noise)
    add_fluid(brain, ventricles, cisterns)
    add_membranes(brain, *grid, bones.cavity)
    draw(brain, grid, head.specks)
    return Layers(outer, bone, brain, ventricles, cisterns)


def _carve_air(layers: tuple[Array, ...], grid: Grid, noise: Noise) -> None:
    """Paint air in the bone and the nose, in place: sinuses, then cells with walls between them."""
    for hu in layers:
        draw(hu, grid, SINUSES, 550, 1.2)
        draw(hu, grid, SINUSES)
    for blob, size_mm in CELLS:
        inside, cover, here = _covered(grid, blob)
        if not len(inside):
            continue
        wall = np.clip(np.abs(noise.at(here, size_mm)) * 4 - 0.3, 0, 1)
        for hu in layers:
            draw(hu, grid, [blob], 500, 1.0)
            hu.ravel()[inside] += cover * (400 - 1250 * wall - hu.ravel()[inside])


def _covered(grid: Grid, blob: Blob) -> tuple[Array, Array, Grid]:
    """Return the n pixels that a blob covers: indices in the flat image and coverage, (n,) each, and coordinates."""
    cover = np.zeros_like(grid.x)
    mark(cover, grid, [blob])
    inside = np.flatnonzero(cover > 0)
    return inside, cover.ravel()[inside], Grid(*(axis.ravel()[inside] for axis in grid))


def _brain(head: Head, grid: Grid, cortex: Array, noise: Noise) -> Array:
    """Return the HU of grey and white matter, without ventricles and cisterns."""
    brain, hind = np.empty_like(cortex), np.empty_like(cortex)
    paint_matter(*grid, cortex, hind, brain)
    draw(brain, grid, [PERIVENTRICULAR], WHITE - 2 - 6 * head.atrophy)
    draw(brain, grid, (*DEEP_GREY, *HINDBRAIN))
    inside, cover, here = _covered(grid, HINDBRAIN[0])
    brain.ravel()[inside] += 2.5 * cover * hind.ravel()[inside] * noise.at(here, 6)
    return brain


def _spaces(
    head: Head, grid: Grid, bones: Surfaces, moved: tuple[Array, Array], noise: Noise
) -> tuple[Array, Array, Array]:
    """Return the coverage of ventricles, of cisterns with sulci, and of the cortical ribbon."""
    cortex, cisterns = np.zeros_like(grid.x), np.zeros_like(grid.x)
    slow = noise.smooth(grid, 60)
    shape = (*bones.foot, bones.cavity, *moved)
    fold_cortex(*grid, *shape, noise.cells, slow, head.atrophy, cortex, cisterns)
    ventricles = np.zeros_like(cortex)
    mark(ventricles, grid, VENTRICLES, 3.6 * head.atrophy - 0.8)
    mark(cisterns, grid, CISTERNS, 2.0 * head.atrophy - 0.4)
    return ventricles, cisterns, cortex

"""This file models a living head: the HU of every tissue at any point, from smooth implicit surfaces.

Head coordinates are mm: x to the patient's left, y to the back, z up; (0, 0, 0) lies in the sella. All arrays of one
slice are float32 of shape (G, G). Depths are mm, positive inside.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.shapes import Array, Blob, Grid, Noise, covers, draw, mark

AIR, FAT, CSF, WHITE, GREY, MUSCLE, SKIN = -1000.0, -100.0, 7.0, 27.5, 37.0, 58.0, 45.0


# Sizes and places follow axial atlas plates of the adult head; each patient's warp and scale vary them.
VENTRICLES = (
    Blob((8.5, -27, 27), (4.6, 13, 9), -14),
    Blob((12, -3, 35), (5.2, 27, 6.5), 9),
    Blob((24, 28, 26), (6.2, 12, 11), 22),
    Blob((26, 48, 20), (3.2, 14, 4.5), -4),
    Blob((31, 8, -3), (2.4, 13, 2.6), 14),
    Blob((0, -2, 13), (2.4, 14, 11), paired=False),
    Blob((0, 14, 3), (1.3, 2.0, 9), paired=False),
    Blob((0, 29, -13), (6.5, 5, 8), paired=False),
)
CISTERNS = (
    Blob((0, -17, 3), (12, 8, 5), paired=False),
    Blob((9, -9, 3), (9, 4, 4), 35),
    Blob((0, 26, 8), (11, 3.0, 5), paired=False),
    Blob((13, 21, 6), (2.2, 8, 5), 38),
    Blob((16, 10, 2), (1.8, 10, 6), -12),
    Blob((0, -1, -9), (13, 3.0, 10), paired=False),
    Blob((20, 8, -12), (9, 3.0, 4), -25),
    Blob((0, 66, -22), (6, 9, 10), paired=False),
    Blob((43, -8, 15), (1.5, 15, 12), 8),
    Blob((53, -20, 12), (12, 1.9, 7), -24),
    Blob((52, 6, 22), (11, 1.6, 6), 28),
    Blob((0, 46, 4), (2.0, 12, 5), paired=False),
)
DEEP_GREY = (
    Blob((14, -24, 26), (4.6, 8, 9), -14, 37.5),
    Blob((25, -7, 15), (6.5, 15, 9), 16, 37),
    Blob((10.5, 8, 19), (7.5, 13, 9), -22, 36.5),
    Blob((41, -8, 15), (2.0, 14, 11), 8, 37),
)
HINDBRAIN = (
    Blob((23, 45, -14), (26, 26, 20), 0, 35, 2.5),
    Blob((0, 46, -12), (9, 22, 20), 0, 36, 2.0, paired=False),
    Blob((0, 11, -11), (14, 11, 12), 0, 32, 2.5, paired=False),
    Blob((14, 24, -12), (9, 9, 7), 0, 30, 3.0),
    Blob((0, 12, 3), (15, 9, 9), 0, 33, 2.0, paired=False),
    Blob((0, 21, -30), (7.5, 6.5, 16), 0, 33, 1.5, paired=False),
)
FACE = (
    Blob((32, -62, -3), (20, 24, 17), 24, FAT, 1.0),
    Blob((22, -38, -3), (10, 16, 9), 34, FAT, 1.0),
    Blob((38, -58, -3), (2.0, 20, 4), 34, 50),
    Blob((20, -58, -2), (1.8, 20, 4), 12, 50),
    Blob((26, -52, -2), (1.9, 20, 2), 24, 35),
    Blob((33, -75, -2), (13.2, 13.2, 13.2), 0, 55, 0.8),
    Blob((33, -75, -2), (11.6, 11.6, 11.6), 0, 9, 0.8),
    Blob((33, -84, -2), (4.6, 1.9, 4.6), 0, 95, 0.8),
    Blob((62, -30, -22), (2.4, 28, 3.5), -12, 900, 0.8),
    Blob((48, -54, -8), (3.0, 9, 18), -38, 1000, 0.8),
    Blob((50, 4, -24), (8, 4.5, 6), 14, 1000, 0.8),
    Blob((49, 6, -44), (3.5, 12, 18), 0, 1000, 0.8),
    Blob((30, -12, -38), (2.2, 14, 14), 28, 500, 0.8),
    Blob((0, 13, -54), (6, 6, 15), 0, 800, 0.8, paired=False),
    Blob((19, 20, -48), (8, 11, 6), 20, 800, 0.8),
)
SINUSES = (
    Blob((7, -24, -12), (7.5, 11, 8), 0, AIR, 0.8),
    Blob((8, -83, 20), (9, 3.5, 10), -14, AIR, 0.8),
    Blob((24, -58, -42), (15, 17, 15), 0, AIR, 0.8),
    Blob((0, -26, -44), (12, 12, 18), 0, AIR, 0.8, paired=False),
    Blob((55, 12, -13), (15, 2.6, 2.6), 0, AIR, 0.8),
)
CELLS = (
    (Blob((5, -58, -8), (7, 24, 14), 0, soft=1.0), 8.0),
    (Blob((6, -64, -36), (10, 26, 18), 0, soft=1.0), 14.0),
    (Blob((57, 24, -14), (9, 12, 16), -30, soft=2.0), 7.0),
)


@dataclass(frozen=True, slots=True)
class Head:
    """What makes one patient's head different from another's.

    Attributes:
        half_width, half_length, half_height: of the cranial cavity, mm.
        skull_mm, scalp_mm: thickness.
        atrophy: 0 young to 1 old: widens ventricles, sulci and the subarachnoid space.
        calcified: blobs of calcium, HU in them.
        aerated: 0 to 1, how far the sinuses and mastoid cells are filled with air.
    """

    half_width: float
    half_length: float
    half_height: float
    skull_mm: float
    scalp_mm: float
    atrophy: float
    calcified: tuple[Blob, ...]
    aerated: float


class Surfaces(NamedTuple):
    """One slice's surfaces, (G, G) float32.

    Attributes:
        skin, cavity: depth below the skin and below the inner table, mm.
        across: way through the bone, 0 at its inner face, 1 at its outer one.
        soft: mm over which an edge is smeared, because the slice is thick and the skull leans.
        foot: the point on the inner table that each pixel lies under.
    """

    skin: Array
    cavity: Array
    across: Array
    soft: Array
    foot: Grid


def surfaces(head: Head, grid: Grid, rough: Array) -> Surfaces:
    """Skin, skull and cranial cavity.

    Args:
        rough: (G, G) smooth noise: varies thickness.
    """
    x, y, z = grid
    ax = np.abs(x)
    vault, foot = _vault(head, grid)
    floor, base_mm = _floor(ax, y)
    crest = np.exp(-np.square((y - 84) / 16) - np.square(x / 18))
    skull_mm = head.skull_mm + np.float32(0.5) * rough + 2 * crest
    cavity = np.minimum(vault, (z - floor) * np.float32(0.8))
    across = np.maximum(-vault / skull_mm, (floor - z) / base_mm)
    temporal = np.exp(-np.square((y + 28) / 34) - np.square((z - 8) / 30)) * np.clip((ax - 40) / 20, 0, 1)
    skin = vault + skull_mm + head.scalp_mm + 9 * temporal
    power = np.float32(2.4)
    column = 70 * (1 - (np.abs(x / 69) ** power + np.abs((y + 6) / 84) ** power) ** (1 / power))
    nose = 12 * (1 - np.sqrt(np.square(x / 12) + np.square((y + 88) / 17) + np.square((z + 26) / 20)))
    skin = np.maximum(np.maximum(skin, nose), np.minimum(column, (14 - z) * np.float32(0.8)))
    lean = np.clip(foot.z / head.half_height, 0, 1)
    return Surfaces(skin, cavity, across, 0.9 + 4.5 * np.square(lean) * lean, foot)


def _vault(head: Head, grid: Grid) -> tuple[Array, Grid]:
    """Depth below the inner table of an egg, wider behind, and the point of the table along the ray from its middle."""
    x, y, z = grid.x, grid.y - 2, grid.z - 15
    width = np.float32(head.half_width) * (1 + np.float32(0.0011) * y - np.float32(0.000012) * np.square(y))
    height = np.where(z > 0, np.float32(head.half_height), np.float32(74))
    total = np.zeros_like(x)
    for part in (x / width, y / np.float32(head.half_length), z / height):
        total += np.square(part) * np.sqrt(np.abs(part))
    scale = np.maximum(total ** np.float32(0.4), np.float32(0.05))
    radius = np.sqrt(np.square(x) + np.square(y) + np.square(z))
    return radius / scale - radius, Grid(x / scale, y / scale, z / scale)


def _floor(ax: Array, y: Array) -> tuple[Array, Array]:
    """Height of the skull base under each point, and the thickness of the bone below it, mm."""
    middle = np.exp(-np.square(np.square((ax - 38) / 23) + np.square((y + 8 - 0.25 * (ax - 38)) / 24)))
    hind = np.exp(-np.square(np.square(ax / 56) + np.square((y - 46) / 41)))
    sella = np.exp(-np.square(ax / 17) - np.square((y + 8) / 17))
    roof = np.exp(-np.square((ax - 30) / 17) - np.square((y + 58) / 24))
    magnum = np.exp(-np.square(np.square(ax / 14) + np.square((y - 26) / 17)))
    height = 10 - 32 * middle - 52 * hind - 10 * sella + 9 * roof - 60 * magnum
    petrous = np.exp(-np.square((y - 12 - 0.45 * (ax - 30)) / 14)) * np.clip((ax - 8) / 10, 0, 1)
    return height, 3.5 + 22 * petrous + 16 * sella + 3 * hind


class Tissue(NamedTuple):
    """One slice without blood, (G, G) float32: HU, and the coverage in [0, 1] of the spaces that blood can fill."""

    hu: Array
    ventricles: Array
    cisterns: Array


def tissues(head: Head, grid: Grid, bones: Surfaces, pressed: Array, swollen: Array, noise: Noise) -> Tissue:
    """Paint one slice from the outside in.

    Args:
        pressed: (G, G) mm by which something under the skull pushes the brain inward.
        swollen: (G, G) mm by which something widens sulci and cisterns.
    """
    rough = noise.smooth(grid, 30)
    hu = _soft_tissue(grid, bones.skin, rough)
    for blob in FACE:
        draw(hu, grid, blob)
    solid = np.clip((1 - bones.across) * head.skull_mm / bones.soft + 0.5, 0, 1)
    solid *= bones.skin > 2
    hu += solid * (_bone(bones.across, noise.smooth(grid, 16)) - hu)
    _sinuses(hu, grid, noise)
    inside = np.clip(bones.cavity / bones.soft + 0.5, 0, 1)
    brain, ventricles, cisterns = _brain(head, grid, bones, pressed, swollen, noise)
    hu += inside * (brain - hu)
    for blob in head.calcified:
        draw(hu, grid, blob)
    return Tissue(hu, ventricles * inside, cisterns * inside)


def _soft_tissue(grid: Grid, below: Array, rough: Array) -> Array:
    """Skin, fat and muscle inside the outline of the head; air outside."""
    deep = (np.abs(grid.x) - 30) / 20 + np.abs(grid.y - 10) / 60 + (6 - grid.z) / 16
    muscle = np.clip(below / 3 - 1.6, 0, 1) * np.clip(deep, 0, 1) * (1 - 0.8 * np.clip(3 * np.abs(rough) - 2.6, 0, 1))
    hu = FAT + (MUSCLE - FAT) * muscle
    hu += np.clip(2.6 - below, 0, 1) * (SKIN - hu)
    hu += np.clip(0.5 - below, 0, 1) * (AIR - hu)
    return hu


def _bone(across: Array, grain: Array) -> Array:
    """Two dense tables with spongy diploe between them."""
    table = np.clip(np.abs(2 * across - 1) * 1.6 - 0.4, 0, 1)
    return 560 + 850 * table + 130 * grain


def _sinuses(hu: Array, grid: Grid, noise: Noise) -> None:
    """Air in the bone and in the nose, in place: whole sinuses, then cells with walls between them."""
    for blob in SINUSES:
        draw(hu, grid, blob, 550, 1.4)
    for blob in SINUSES:
        draw(hu, grid, blob)
    for blob, size_mm in CELLS:
        for window, cover in covers(grid, blob, 0.0):
            wall = np.clip(np.abs(noise.at(Grid(*(axis[window] for axis in grid)), size_mm)) * 5 - 0.5, 0, 1)
            hu[window] += cover * (450 - 1350 * wall - hu[window])


def _brain(
    head: Head, grid: Grid, bones: Surfaces, pressed: Array, swollen: Array, noise: Noise
) -> tuple[Array, Array, Array]:
    """HU inside the skull, and the coverage of ventricles and cisterns, sulci among them."""
    cortex, cisterns = _folds(head, grid, bones.cavity - pressed, swollen, bones.foot, noise)
    brain = WHITE + (GREY - WHITE) * cortex
    for blob in (*DEEP_GREY, *HINDBRAIN):
        draw(brain, grid, blob)
    for window, cover in covers(grid, HINDBRAIN[0], 0.0):
        brain[window] += 2.2 * cover * noise.at(Grid(*(axis[window] for axis in grid)), 7)
    ventricles = np.zeros_like(brain)
    for blob in VENTRICLES:
        mark(ventricles, grid, blob, 4.0 * head.atrophy - 1.0)
    for blob in CISTERNS:
        mark(cisterns, grid, blob, 2.0 * head.atrophy - 0.4)
    brain += np.maximum(ventricles, cisterns) * (CSF - brain)
    _membranes(brain, grid, bones.cavity)
    brain += 7 * np.exp(-np.square(bones.cavity / 7))  # beam hardening: brighter under bone
    return brain, ventricles, cisterns


def _folds(head: Head, grid: Grid, depth: Array, swollen: Array, foot: Grid, noise: Noise) -> tuple[Array, Array]:
    """Coverage of the cortical ribbon, and of sulci, fissure and the space around the brain.

    Sulci are the zero lines of smooth noise on the brain's surface, carried inward: they stand upright on it, wander
    along it, and end at their own depth.
    """
    x, y, z = grid
    around = np.sqrt(np.square((y - 4) / 52) + np.square((z - 6) / 40))
    fissure = np.abs(x) + 60 * np.clip(1.05 - around, 0, 1)
    surface = np.minimum(depth, fissure)
    upper = z > -4 - 0.3 * np.abs(y - 20) * (y < 20) + 14 * np.clip((y - 20) / 15, 0, 1)
    cells = np.flatnonzero((surface < 22) & (depth > -2) & upper)
    medial = (fissure < depth).ravel()[cells]
    point = [np.where(medial, part.ravel()[cells], on.ravel()[cells]) for part, on in zip(grid, foot, strict=True)]
    point[0] = np.where(medial, np.sign(point[0]) * 40, point[0])
    under = surface.ravel()[cells]
    away = 4.4 * np.abs(noise.at(Grid(*point), 28)) + 1.2 * np.abs(under - 8) / 8
    width = (0.25 + 1.3 * head.atrophy + swollen.ravel()[cells]) * (1.25 - under / 17)
    rim = 2.4 * head.atrophy + 0.5 * swollen.ravel()[cells]
    pia = np.minimum(under - rim, away - width + np.clip(under - 16, 0, 9))
    cortex, space = np.zeros_like(x), np.zeros_like(x)
    cortex.ravel()[cells] = np.clip((3.6 - pia) / 1.6, 0, 1)
    space.ravel()[cells] = np.clip(0.5 - np.minimum((under - rim), away - width) / 1.1, 0, 1)
    return cortex, space


def _membranes(brain: Array, grid: Grid, depth: Array) -> None:
    """Falx, tentorium and the sinuses at their edges, in place: thin and a little brighter than cortex."""
    x, y, z = grid
    ax = np.abs(x)
    around = np.square((y - 4) / 60) + np.square((z - 4) / 46)
    falx = np.clip(1.3 - ax, 0, 1) * np.clip(6 * (around - 1), 0, 1) * (z > 8)
    sheet = 24 - 0.5 * ax - 0.12 * np.abs(y - 40)
    tentorium = np.clip(1.5 - np.abs(z - sheet), 0, 1) * np.clip((y - 16 - 0.5 * ax) / 4, 0, 1) * (ax < 52)
    sagittal = np.clip(4.2 - ax - 0.6 * depth, 0, 1) * (z > 5)
    for cover, hu in ((falx, 46), (tentorium, 46), (sagittal, 50)):
        brain += 0.85 * cover * (hu - brain)

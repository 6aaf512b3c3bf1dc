"""Draw random bleeds of the five kinds, and paint them into a slice."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from phantom.anatomy import Head, Layers, Surfaces
from phantom.compiled import Array, squared_distance
from phantom.shapes import Blob, Grid, Noise, mark
from phantom.tissue import tentorium_height

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Bleed(ABC):
    """A bleed.

    Attributes:
        kind: one of CLASSES.
        hu: of the clot.
    """

    kind: ClassVar[str]
    hu: float

    def presses(self, bones: Surfaces) -> Array:
        """Return how far it pushes the brain away from the skull, (G, G) mm."""
        return np.zeros_like(bones.cavity)

    def swells(self, grid: Grid) -> Array:
        """Return how far it widens sulci and cisterns, (G, G) mm."""
        return np.zeros_like(grid.x)

    @abstractmethod
    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        """Return the share of blood in each pixel, (G, G) in [0, 1]; it may darken the brain layer in place."""


@dataclass(frozen=True, slots=True)
class Epidural(Bleed):
    """A lens between skull and dura, thickest at `centre` on the inner table."""

    kind = "epidural"
    centre: Point
    reach_mm: float
    thick_mm: float

    def presses(self, bones: Surfaces) -> Array:
        away = _distance(bones.foot, self.centre, (self.reach_mm,) * 3)
        return np.float32(self.thick_mm) * np.maximum(1 - away, 0) if away.min() < 1 else np.zeros_like(away)

    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        return _under_skull(self.presses(bones), bones)


@dataclass(frozen=True, slots=True)
class Subdural(Bleed):
    """A crescent of uniform thickness with long thin ends over one hemisphere."""

    kind = "subdural"
    side: int
    centre: Point
    radii: Point
    thick_mm: float

    def presses(self, bones: Surfaces) -> Array:
        away = _distance(bones.foot, self.centre, self.radii)
        if away.min() >= 1:
            return np.zeros_like(away)
        ends = np.clip(1.25 * (1 - np.square(away)), 0, 1)
        return np.float32(self.thick_mm) * ends * np.clip((bones.foot.x * self.side - 2) / 6, 0, 1)

    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        return _under_skull(self.presses(bones), bones)


@dataclass(frozen=True, slots=True)
class Interhemispheric(Bleed):
    """A subdural bleed along one side of the falx."""

    kind = "subdural"
    side: int
    centre: Point
    radii: Point
    thick_mm: float

    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        away = _distance(grid._replace(x=np.zeros_like(grid.x)), self.centre, self.radii)
        around = np.square((grid.y - 4) / 54) + np.square((grid.z - 4) / 42)
        thick = np.float32(self.thick_mm) * np.clip(1.3 * (1 - away), 0, 1) * np.clip(4 * (around - 1), 0, 1)
        across = grid.x * np.float32(self.side)
        return np.clip(thick - across + 0.5, 0, 1) * np.clip(across + 0.5, 0, 1) * (thick > 0.5)


@dataclass(frozen=True, slots=True)
class Tentorial(Bleed):
    """A subdural bleed on one half of the tentorium."""

    kind = "subdural"
    side: int
    thick_mm: float

    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        above = grid.z - tentorium_height(grid.x, grid.y)
        behind = np.clip((grid.y - 18 - 0.45 * np.abs(grid.x)) / 3, 0, 1)
        lying = np.clip(above + 0.5, 0, 1) * np.clip(np.float32(self.thick_mm) - above, 0, 1)
        return lying * behind * np.clip(grid.x * self.side - 1, 0, 1)


@dataclass(frozen=True, slots=True)
class Subarachnoid(Bleed):
    """Blood instead of fluid in the sulci and cisterns around `centre`."""

    kind = "subarachnoid"
    centre: Point
    radii: Point
    wide_mm: float

    def swells(self, grid: Grid) -> Array:
        return np.float32(self.wide_mm) * self._near(grid)

    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        return layers.cisterns * self._near(grid)

    def _near(self, grid: Grid) -> Array:
        return np.clip(2 * (1 - _distance(grid, self.centre, self.radii)), 0, 1)


@dataclass(frozen=True, slots=True)
class Intraventricular(Bleed):
    """Blood in the ventricles near `centre`, with a level at y = `level_mm`: in a supine patient it sinks to +y."""

    kind = "intraventricular"
    level_mm: float
    centre: Point
    reach_mm: float

    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        sunk = np.clip((grid.y - np.float32(self.level_mm)) / 1.5 + 0.5, 0, 1)
        level = grid._replace(y=np.zeros_like(grid.y))
        near = _distance(level, self.centre, (self.reach_mm, 1.0, self.reach_mm))
        return layers.ventricles * sunk * np.clip(3 * (1 - near), 0, 1)


@dataclass(frozen=True, slots=True)
class Intraparenchymal(Bleed):
    """Lobes of clot in the brain, surrounded by darker oedema of width `oedema_mm`."""

    kind = "intraparenchymal"
    lobes: tuple[Blob, ...]
    oedema_mm: float

    def fills(self, layers: Layers, grid: Grid, bones: Surfaces) -> Array:
        clot, swelling = np.zeros_like(grid.x), np.zeros_like(grid.x)
        mark(clot, grid, self.lobes)
        mark(swelling, grid, [lobe._replace(soft=4.0) for lobe in self.lobes], self.oedema_mm)
        if not swelling.any():  # then there is no clot either
            return clot
        brain = np.clip((bones.cavity - 2) / 3, 0, 1)
        hu = layers.brain
        hu += 0.75 * swelling * brain * (18 - hu) * (hu > 18)
        return clot * brain


def _distance(points: Grid, centre: Point, radii: Point) -> Array:
    """Return the squared distance from `centre` in units of the radii."""
    away = np.empty_like(points.x)
    squared_distance(*points, np.array(centre, np.float32), np.array(radii, np.float32), away)
    return away


def _under_skull(thick: Array, bones: Surfaces) -> Array:
    shown = thick > 0.8
    return np.clip(thick - bones.cavity + 0.5, 0, 1) * shown if shown.any() else np.zeros_like(thick)


def press_and_swell(bleeds: tuple[Bleed, ...], grid: Grid, bones: Surfaces) -> tuple[Array, Array]:
    """Return the effect of all bleeds on the brain: `pressed` and `swollen` for `anatomy.paint`."""
    pressed, swollen = np.zeros_like(grid.x), np.zeros_like(grid.x)
    for bleed in bleeds:
        np.maximum(pressed, bleed.presses(bones), out=pressed)
        np.maximum(swollen, bleed.swells(grid), out=swollen)
    return pressed, swollen


def paint_bleeds(layers: Layers, bleeds: tuple[Bleed, ...], grid: Grid, bones: Surfaces, noise: Noise) -> Array:
    """Paint bleeds into the brain layer, in place.

    Returns:
        (G, G) uint8: 0 without blood, else 1 + the index in CLASSES of the kind that fills the pixel.
    """
    owner = np.zeros(grid.x.shape, np.uint8)
    for bleed in bleeds:
        cover = bleed.fills(layers, grid, bones)
        if cover.max() < 0.05:  # most slices of most bleeds
            continue
        inside = np.clip(bones.cavity / bones.soft + 0.5, 0, 1)  # even a little bone in a pixel hides blood
        if (cover * inside).max() < 0.05:
            continue
        clot = np.float32(bleed.hu) + 3 * noise.smooth(grid, 12)
        hu = layers.brain
        hu += cover * (clot - hu)
        owner[(cover > 0.6) & (inside > 0.97)] = 1 + CLASSES.index(bleed.kind)
    return owner


def draw_bleeds(rng: np.random.Generator, kinds: list[str], head: Head) -> tuple[Bleed, ...]:
    """Draw a bleed of each kind with random position, size and HU; positions cover the full height of the anatomy."""
    return tuple(_DRAW[kind](rng, head) for kind in kinds)


def _draw_on_vault(rng: np.random.Generator, head: Head) -> tuple[int, Point]:
    """Return a random side, -1 or 1, and a point on the inner table of that side."""
    side = int(rng.choice((-1, 1)))
    turn, z = rng.uniform(-1.1, 1.1), rng.uniform(-8, 74)
    size = np.sqrt(max(1 - ((z - 15) / head.half_height) ** 2, 0.1))
    return side, (side * head.half_width * size * np.cos(turn), 2 + head.half_length * size * np.sin(turn), z)


def _draw_epidural(rng: np.random.Generator, head: Head) -> Bleed:
    _, centre = _draw_on_vault(rng, head)
    reach = rng.uniform(22, 42)
    return Epidural(rng.uniform(60, 82), centre, reach, reach * rng.uniform(0.28, 0.55))


def _draw_subdural(rng: np.random.Generator, head: Head) -> Bleed:
    side, centre = _draw_on_vault(rng, head)
    place, hu = rng.random(), rng.uniform(52, 76)
    if place < 0.15:
        middle = (0.0, rng.choice((-1, 1)) * rng.uniform(30, 60), rng.uniform(30, 75))
        return Interhemispheric(hu, side, middle, (1.0, rng.uniform(30, 60), rng.uniform(20, 40)), rng.uniform(3.5, 7))
    if place < 0.25:
        return Tentorial(hu, side, rng.uniform(4, 8))
    radii = (200.0, rng.uniform(40, 85), rng.uniform(20, 50))
    return Subdural(hu, side, centre, radii, rng.uniform(4, 15))


def _draw_subarachnoid(rng: np.random.Generator, head: Head) -> Bleed:
    side, centre = _draw_on_vault(rng, head)
    radii = tuple(rng.uniform(22, 45, 3).tolist())
    if rng.random() < 0.45:  # an aneurysm of the circle of Willis bleeds into the basal cisterns
        centre = (side * rng.uniform(0, 25), rng.uniform(-25, 5), rng.uniform(0, 12))
    return Subarachnoid(rng.uniform(54, 72), centre, radii, rng.uniform(0.9, 1.6))


def _draw_intraventricular(rng: np.random.Generator, head: Head) -> Bleed:
    level = rng.uniform(0, 32) if rng.random() < 0.6 else -60.0
    side = rng.choice((-1, 0, 1))
    return Intraventricular(rng.uniform(55, 78), level, (12.0 * side, 0.0, rng.uniform(5, 35)), rng.uniform(22, 60))


# Centre and radii, mm: putamen, thalamus, frontal, temporal, parietal, high frontal, occipital, cerebellum, pons.
_SITES = (
    ((26, -5, 15), (9, 15, 12)),
    ((12, 9, 19), (8, 10, 9)),
    ((36, -50, 32), (14, 16, 15)),
    ((46, 12, 0), (12, 17, 12)),
    ((38, 38, 42), (15, 16, 16)),
    ((24, -14, 58), (13, 18, 14)),
    ((24, 64, 22), (12, 13, 13)),
    ((26, 46, -16), (13, 12, 9)),
    ((3, 12, -12), (8, 7, 8)),
)


def _draw_intraparenchymal(rng: np.random.Generator, head: Head) -> Bleed:
    site, radii = _SITES[rng.integers(len(_SITES))]
    centre = np.array(site) * (rng.choice((-1, 1)), 1, 1) + rng.normal(0, 3, 3)
    size = np.array(radii) * rng.uniform(0.5, 1.3)
    lobes = []
    for _ in range(rng.integers(2, 5)):
        middle, reach = centre + rng.normal(0, 0.35, 3) * size, size * rng.uniform(0.55, 1.0, 3)
        lobes.append(Blob(tuple(middle.tolist()), tuple(reach.tolist()), rng.uniform(-40, 40), soft=1.6, paired=False))
    return Intraparenchymal(rng.uniform(58, 86), tuple(lobes), rng.uniform(2, 9))


_DRAW: dict[str, Callable[[np.random.Generator, Head], Bleed]] = {
    "epidural": _draw_epidural,
    "intraparenchymal": _draw_intraparenchymal,
    "intraventricular": _draw_intraventricular,
    "subarachnoid": _draw_subarachnoid,
    "subdural": _draw_subdural,
}

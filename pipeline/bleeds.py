"""This file places the five kinds of intracranial bleeding in a head, and paints them into a slice."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.anatomy import CSF, Surfaces, Tissue
from pipeline.shapes import Array, Blob, Grid, Noise, coverage

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


@dataclass(frozen=True, slots=True)
class Bleed:
    """One bleeding.

    Attributes:
        kind: a word of CLASSES.
        side: 1 left, -1 right.
        centre: mm, head coordinates.
        radii: how far it reaches along x, y, z, mm.
        thickness: mm, of blood against the skull or the falx.
        hu: of the clot.
        lobes: of an intraparenchymal bleeding.
        oedema: mm of swollen, darker brain around it.
        along_falx: a subdural bleeding beside the falx, not under the vault.
    """

    kind: str
    side: int
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    thickness: float
    hu: float
    lobes: tuple[Blob, ...] = ()
    oedema: float = 0.0
    along_falx: bool = False


@dataclass(slots=True)
class Burden:
    """What the bleeds do to the brain of one slice, (G, G) float32 mm: `pressed` inward, `swollen` sulci; and the
    thickness of each bleeding's layer."""

    pressed: Array
    swollen: Array
    layers: list[Array | None] = field(default_factory=list)


def draw_bleeds(rng: np.random.Generator, kinds: list[str], half_width: float, half_length: float) -> tuple[Bleed, ...]:
    """Choose place, size and density for each kind; places cover the whole height that anatomy allows."""
    return tuple(_PLACE[kind](rng, half_width, half_length) for kind in kinds)


def _on_vault(
    rng: np.random.Generator, half_width: float, half_length: float
) -> tuple[int, tuple[float, float, float]]:
    """A side, and a point on the inner table of that side."""
    side = int(rng.choice((-1, 1)))
    turn, z = rng.uniform(-1.1, 1.1), rng.uniform(-8, 74)
    size = np.sqrt(max(1 - ((z - 15) / 80) ** 2, 0.1))
    return side, (side * half_width * size * np.cos(turn), 2 + half_length * size * np.sin(turn), z)


def _epidural(rng: np.random.Generator, half_width: float, half_length: float) -> Bleed:
    side, centre = _on_vault(rng, half_width, half_length)
    reach = rng.uniform(22, 42)
    thick = reach * rng.uniform(0.28, 0.55)
    return Bleed("epidural", side, centre, (reach, reach, reach), thick, rng.uniform(60, 82))


def _subdural(rng: np.random.Generator, half_width: float, half_length: float) -> Bleed:
    side, centre = _on_vault(rng, half_width, half_length)
    along_falx = bool(rng.random() < 0.2)
    if along_falx:
        centre = (0.0, rng.choice((-1, 1)) * rng.uniform(30, 60), rng.uniform(30, 75))
    radii = (200.0, rng.uniform(45, 85), rng.uniform(25, 50))
    thick = rng.uniform(3.5, 7) if along_falx else rng.uniform(4, 15)
    return Bleed("subdural", side, centre, radii, thick, rng.uniform(52, 76), along_falx=along_falx)


def _subarachnoid(rng: np.random.Generator, half_width: float, half_length: float) -> Bleed:
    side, centre = _on_vault(rng, half_width, half_length)
    if rng.random() < 0.5:
        centre, radii = (side * rng.uniform(0, 25), rng.uniform(-25, 5), rng.uniform(0, 12)), rng.uniform(28, 48, 3)
    else:
        radii = rng.uniform(24, 45, 3)
    wide = rng.uniform(0.9, 1.6)
    return Bleed("subarachnoid", side, centre, tuple(radii.tolist()), wide, rng.uniform(54, 72))


def _intraventricular(rng: np.random.Generator, half_width: float, half_length: float) -> Bleed:
    level = rng.uniform(5, 42) if rng.random() < 0.6 else -60.0
    reach = rng.uniform(25, 60)
    side = int(rng.choice((-1, 0, 1)))
    return Bleed(
        "intraventricular", side, (12.0 * side, level, rng.uniform(0, 30)), (reach,) * 3, 0.0, rng.uniform(55, 78)
    )


_SITES = (
    ((26, -5, 15), (9, 15, 12)),
    ((12, 9, 19), (8, 10, 9)),
    ((36, -50, 32), (14, 16, 15)),
    ((46, 12, 0), (12, 17, 12)),
    ((38, 38, 42), (15, 16, 16)),
    ((24, -14, 58), (13, 18, 14)),
    ((24, 64, 20), (12, 13, 13)),
    ((26, 46, -16), (13, 12, 9)),
    ((3, 11, -10), (8, 7, 8)),
)


def _intraparenchymal(rng: np.random.Generator, half_width: float, half_length: float) -> Bleed:
    side = int(rng.choice((-1, 1)))
    site, radii = _SITES[rng.integers(len(_SITES))]
    centre = np.array(site) * (side, 1, 1) + rng.normal(0, 3, 3)
    size = np.array(radii) * rng.uniform(0.45, 1.25)
    lobes = tuple(
        Blob(
            tuple((centre + rng.normal(0, 0.35, 3) * size).tolist()),
            tuple((size * rng.uniform(0.55, 1.0, 3)).tolist()),
            rng.uniform(-40, 40),
            soft=1.6,
            paired=False,
        )
        for _ in range(rng.integers(2, 5))
    )
    return Bleed(
        "intraparenchymal",
        side,
        tuple(centre.tolist()),
        tuple(size.tolist()),
        0.0,
        rng.uniform(58, 86),
        lobes,
        rng.uniform(2, 9),
    )


_PLACE = {
    "epidural": _epidural,
    "intraparenchymal": _intraparenchymal,
    "intraventricular": _intraventricular,
    "subarachnoid": _subarachnoid,
    "subdural": _subdural,
}


def burden(bleeds: tuple[Bleed, ...], grid: Grid, bones: Surfaces) -> Burden:
    """How far each bleed pushes the brain and widens its sulci in one slice."""
    total = Burden(np.zeros_like(grid.x), np.zeros_like(grid.x))
    for bleed in bleeds:
        layer: Array | None = None
        if bleed.kind in ("epidural", "subdural") and not bleed.along_falx:
            layer = _layer(bleed, bones.foot)
            np.maximum(total.pressed, layer, out=total.pressed)
        elif bleed.kind == "subarachnoid":
            layer = _nearness(bleed, grid)
            np.maximum(total.swollen, layer * bleed.thickness, out=total.swollen)
        total.layers.append(layer)
    return total


def _layer(bleed: Bleed, foot: Grid) -> Array:
    """Thickness of blood under each point of the vault, mm: a lens, or a crescent with long thin ends."""
    away = sum(np.square((on - c) / r) for on, c, r in zip(foot, bleed.centre, bleed.radii, strict=True))
    if bleed.kind == "epidural":
        return np.float32(bleed.thickness) * np.maximum(1 - away, 0)
    flat = np.clip(1.25 * (1 - np.square(away)), 0, 1) * np.clip((foot.x * bleed.side - 2) / 6, 0, 1)
    return np.float32(bleed.thickness) * flat


def _nearness(bleed: Bleed, grid: Grid) -> Array:
    away = sum(np.square((p - c) / r) for p, c, r in zip(grid, bleed.centre, bleed.radii, strict=True))
    return np.clip(2 * (1 - away), 0, 1)


def bleed_into(
    hu: Array, tissue: Tissue, bleeds: tuple[Bleed, ...], total: Burden, grid: Grid, bones: Surfaces, noise: Noise
) -> Array:
    """Paint the blood into (G, G) HU in place.

    Returns:
        (G, G) uint8: 0 where there is no blood, else 1 + the index in CLASSES of the kind that fills the pixel.
    """
    owner = np.zeros(hu.shape, np.uint8)
    inside = np.clip(bones.cavity + 0.5, 0, 1)
    for bleed, layer in zip(bleeds, total.layers, strict=True):
        cover = _cover(hu, bleed, layer, tissue, grid, bones) * inside
        if cover.max() < 0.05:
            continue
        clot = np.float32(bleed.hu) + 3 * noise.smooth(grid, 12)
        hu += cover * (clot - hu)
        owner[cover > 0.5] = 1 + CLASSES.index(bleed.kind)
    return owner


def _cover(hu: Array, bleed: Bleed, layer: Array | None, tissue: Tissue, grid: Grid, bones: Surfaces) -> Array:
    """Share of each pixel that this bleed fills, in [0, 1]."""
    if bleed.kind == "intraparenchymal":
        return _parenchymal(hu, bleed, grid, bones)
    if bleed.kind == "intraventricular":
        fluid = np.clip((grid.y - bleed.centre[1]) / 1.5 + 0.5, 0, 1)
        return tissue.ventricles * fluid * _nearness(bleed, Grid(grid.x, np.full_like(grid.y, bleed.centre[1]), grid.z))
    if bleed.along_falx:
        away = np.square((grid.y - bleed.centre[1]) / bleed.radii[1]) + np.square(
            (grid.z - bleed.centre[2]) / bleed.radii[2]
        )
        around = np.square((grid.y - 4) / 54) + np.square((grid.z - 4) / 42)
        thick = bleed.thickness * np.clip(1.3 * (1 - away), 0, 1) * np.clip(4 * (around - 1), 0, 1)
        return (
            np.clip(thick - grid.x * bleed.side + 0.5, 0, 1) * np.clip(grid.x * bleed.side + 0.5, 0, 1) * (thick > 0.5)
        )
    assert layer is not None
    if bleed.kind == "subarachnoid":
        return tissue.cisterns * layer
    return np.clip(layer - bones.cavity + 0.5, 0, 1) * (layer > 0.8)


def _parenchymal(hu: Array, bleed: Bleed, grid: Grid, bones: Surfaces) -> Array:
    """Lobes of clot; the darker oedema around them is painted here, in place."""
    clot, swelling = np.zeros_like(hu), np.zeros_like(hu)
    for lobe in bleed.lobes:
        np.maximum(clot, coverage(grid, lobe), out=clot)
        wide = lobe._replace(soft=4.0)
        np.maximum(swelling, coverage(grid, wide, 1, bleed.oedema), out=swelling)
    brain = np.clip((bones.cavity - 2) / 3, 0, 1)
    hu += 0.75 * swelling * brain * (0.5 * (CSF + 30) - hu)
    return clot * brain

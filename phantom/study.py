"""Make synthetic head CT studies with known bleeds."""

from dataclasses import dataclass

import numpy as np

from phantom.anatomy import Head, paint, surfaces
from phantom.bleeds import CLASSES, Bleed, draw_bleeds, paint_bleeds, press_and_swell
from phantom.compiled import Array
from phantom.scanner import (
    CODING_SHARES,
    CODINGS,
    SIDE,
    Coding,
    Geometry,
    Pose,
    Scanner,
    draw_geometry,
    draw_pose,
)
from phantom.shapes import Blob, Grid, Noise, enlarge

LABELS = (*CLASSES, "any")
VISIBLE_MM2 = 30.0
MAX_SLICES = 64
BLEEDING = 5  # patients out of ten; in RSNA 2019, four out of ten studies


@dataclass(frozen=True, slots=True)
class Study:
    """One study with one series.

    Attributes:
        uids: SOP Instance UID of each slice, foot to head.
        windows: (centre, width) as text, as in the files.
        implicit_vr: whether the files are Implicit VR Little Endian instead of Explicit VR.
        stored: (N, 512, 512) int16 or uint16; HU = stored + coding.intercept.
        blood: (N, 256, 256) uint8, at every second pixel: 0 for none, else 1 + index in CLASSES.
        labels: (N, 6) uint8 in the order of LABELS: 1 if the slice has at least VISIBLE_MM2 of that kind of blood.
    """

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    uids: tuple[str, ...]
    geometry: Geometry
    coding: Coding
    windows: tuple[tuple[str, str], ...]
    implicit_vr: bool
    stored: Array
    blood: Array
    labels: Array

    @property
    def hu(self) -> Array:
        """The HU, (N, 512, 512) int32."""
        return self.stored.astype(np.int32) + self.coding.intercept


def count_studies(seed: int, patient: int) -> int:
    """Return the number of studies of a patient: 2 for one in forty, else 1.

    Source: in RSNA 2019, 55 of 2,144 patients have several.
    """
    return 1 + (np.random.default_rng((seed, patient, 2)).random() < 1 / 40)


def make_study(seed: int, patient: int, number: int = 0, *, bloodless: bool = False, bleeding: int = BLEEDING) -> Study:
    """Make one study, which depends only on the arguments.

    Args:
        seed: of all random numbers.
        patient: number of the patient.
        number: 0, or 1 for a patient's second study: the same head on another day.
        bloodless: whether to leave out the bleeds; scan and noise are otherwise identical.
        bleeding: number of patients out of ten with a bleed.
    """
    body = np.random.default_rng((seed, patient, 3))
    head, shape, size = _draw_head(body), Noise(body), body.uniform(0.94, 1.05)
    rng = np.random.default_rng((seed, patient, 4, number))
    bleeds = draw_bleeds(rng, draw_kinds(seed, patient, rng, bleeding), head)
    origin = np.array([rng.normal(0, 3), rng.normal(0, 5), rng.uniform(-200, 200)])
    geometry = draw_geometry(rng, origin, size)
    pose = draw_pose(rng, geometry, origin, size)
    coding = CODINGS[rng.choice(len(CODINGS), p=CODING_SHARES)]
    stored, blood = _scan((head, () if bloodless else bleeds, shape), pose, geometry, coding, rng)
    series = 2 * patient + number
    return Study(
        patient_id=f"ID_{scramble(patient, 32, seed):08x}",
        study_instance_uid=f"ID_{scramble(series, 40, seed + 1):010x}",
        series_instance_uid=f"ID_{scramble(series, 40, seed + 2):010x}",
        uids=tuple(f"ID_{scramble(MAX_SLICES * series + k, 36, seed + 3):09x}" for k in range(len(stored))),
        geometry=geometry,
        coding=coding,
        windows=_draw_windows(rng),
        implicit_vr=bool(rng.random() < 0.3),
        stored=stored,
        blood=blood,
        labels=_label(blood, geometry.spacing_mm),
    )


def _scan(
    body: tuple[Head, tuple[Bleed, ...], Noise],
    pose: Pose,
    geometry: Geometry,
    coding: Coding,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Return `Study.stored` and `Study.blood` of a head with its bleeds and its irregular shape."""
    head, bleeds, shape = body
    scanner = Scanner(rng, geometry, coding)
    stored = np.empty((len(geometry.positions), SIDE, SIDE), np.int16 if coding.signed else np.uint16)
    blood = np.empty((len(stored), SIDE // 2, SIDE // 2), np.uint8)
    for k, position in enumerate(geometry.positions):
        grid = _warp(pose.grid(geometry, position), shape)
        bones = surfaces(head, grid, shape)
        layers = paint(head, grid, bones, press_and_swell(bleeds, grid, bones), shape)
        blood[k] = paint_bleeds(layers, bleeds, grid, bones, shape)
        stored[k] = scanner.expose(layers, bones, rng)
    return stored, blood


def _label(blood: Array, spacing_mm: float) -> Array:
    """Return `Study.labels`."""
    pixels = np.stack([np.bincount(plane.ravel(), minlength=len(LABELS))[1:] for plane in blood])
    shown = pixels * (2 * spacing_mm) ** 2 >= VISIBLE_MM2
    return np.concatenate([shown, shown.any(1, keepdims=True)], 1).astype(np.uint8)


def scramble(number: int, bits: int, key: int) -> int:
    """Map a number to another by a permutation of the integers below 2**bits, so that results are unique."""
    mask = (1 << bits) - 1
    for turn in range(3):
        odd = (0x9E3779B97F4A7C15 + 2 * (key * 0xD1B54A32D192ED03 + turn)) | 1
        number = (number * odd + key + turn) & mask
        number ^= number >> (bits // 2)
    return number


def draw_kinds(seed: int, patient: int, rng: np.random.Generator, bleeding: int = BLEEDING) -> list[str]:
    """Return the kinds of bleeds: `bleeding` out of ten patients have any; their first kinds cycle through CLASSES."""
    block = np.random.default_rng((seed, patient // 10, 5)).permutation(10)
    place = int(block[patient % 10])
    if place >= bleeding:
        return []
    first = place % len(CLASSES)
    also = (0.05, 0.18, 0.18, 0.25, 0.2)
    return [name for k, name in enumerate(CLASSES) if k == first or rng.random() < also[k]]


def _draw_head(rng: np.random.Generator) -> Head:
    """Draw the parameters of a head: size, skull, age, and specks that can be mistaken for blood."""
    specks = []
    if rng.random() < 0.6:  # pineal gland
        specks.append(Blob((0, 26, 13), (2.0, 2.2, 3.0), 0, rng.uniform(120, 350), paired=False))
    if rng.random() < 0.5:  # choroid plexus
        specks.append(Blob((23, 32, 24), tuple(rng.uniform(1.5, 3.5, 3).tolist()), 20, rng.uniform(90, 300)))
    if rng.random() < 0.25:  # falx
        place = (0.0, rng.uniform(-70, -45), rng.uniform(25, 65))
        specks.append(Blob(place, (1.5, 7, 6), 0, rng.uniform(150, 500), paired=False))
    if rng.random() < 0.15:  # basal ganglia
        specks.append(Blob((21, -6, 15), (3, 5, 4), 16, rng.uniform(60, 140)))
    if rng.random() < 0.12:  # an old infarct
        place = (rng.choice((-1, 1)) * rng.uniform(30, 48), rng.uniform(-45, 45), rng.uniform(5, 50))
        specks.append(Blob(place, tuple(rng.uniform(8, 20, 3).tolist()), 0, rng.uniform(12, 20), 5.0, paired=False))
    if rng.random() < 0.04:  # aneurysm clip
        place = (rng.uniform(-25, 25), -15.0, 5.0)
        specks.append(Blob(place, (1.8, 4.0, 4.0), 30, rng.uniform(10_000, 29_000), paired=False))
    return Head(
        half_width=rng.uniform(63, 70),
        half_length=rng.uniform(79, 87),
        half_height=rng.uniform(74, 82),
        skull_mm=rng.uniform(5.5, 9),
        scalp_mm=rng.uniform(4, 8),
        atrophy=float(rng.beta(1.2, 1.6)),
        specks=tuple(specks),
    )


def _draw_windows(rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """Draw window centres and widths, as text like in RSNA 2019: often "00036", sometimes several."""
    window = (("00036", "00080"), ("40", "80"), ("30", "80"), ("40", "150"))[rng.integers(4)]
    return (window, window) if rng.random() < 0.2 else (window,)


def _warp(grid: Grid, noise: Noise) -> Grid:
    """Warp the coordinates slightly, so that heads differ and are not symmetrical."""
    x, y, z = (axis[::8, ::8] for axis in grid)
    apart = (Grid(x + 300, y, z), Grid(x, y + 300, z), Grid(x, y, z + 300))
    bends = enlarge(np.stack([noise.at(of, 90) for of in apart]), 8)
    for bend, most_mm, axis in zip(bends, (1.8, 1.8, 0.8), grid, strict=True):
        bend *= np.float32(most_mm)
        bend += axis
    return Grid(*bends)

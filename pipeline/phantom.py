"""This file makes synthetic head CT studies with known bleeds, and writes them as RSNA 2019's files and labels."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.anatomy import Head, surfaces, tissues
from pipeline.bleeds import CLASSES, Bleed, bleed_into, burden, draw_bleeds
from pipeline.dicom_write import SliceAttributes, encode_slice
from pipeline.shapes import Array, Blob, Grid, Noise, enlarge

SIDE = 512
VISIBLE_MM2 = 30.0
PADDING = -2000
LABEL_ORDER = (*CLASSES, "any")


@dataclass(frozen=True, slots=True)
class Coding:
    """How HU become stored values: stored = HU - intercept, clipped to what the bits hold."""

    bits_stored: int
    signed: bool
    intercept: int

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest stored value."""
        low = -(1 << (self.bits_stored - 1)) if self.signed else 0
        return low, low + (1 << self.bits_stored) - 1


# Shares are about those of the RSNA 2019 files.
CODINGS = (
    Coding(12, False, -1024),
    Coding(16, True, -1024),
    Coding(16, True, 0),
    Coding(12, True, 0),
    Coding(16, True, -1000),
)
CODING_SHARES = (0.50, 0.34, 0.08, 0.04, 0.04)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the slices lie.

    Attributes:
        positions: (N, 3) float64, ImagePositionPatient of each slice, mm, foot to head.
        orientation: ImageOrientationPatient, the same for all slices.
        spacing_mm: between pixel centres, rows and columns alike.
    """

    positions: Array
    orientation: tuple[float, float, float, float, float, float]
    spacing_mm: float


@dataclass(frozen=True, slots=True)
class Study:
    """One study of one series.

    Attributes:
        uids: SOP Instance UID of each slice.
        stored: (N, 512, 512) int16 or uint16; HU = stored + coding.intercept.
        blood: (N, 256, 256) uint8, at every second pixel: 0 none, else 1 + index in CLASSES.
        labels: (N, 6) uint8 in the order of LABEL_ORDER: 1 where at least VISIBLE_MM2 of that blood lies in the slice.
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
        """(N, 512, 512) int32 HU."""
        return self.stored.astype(np.int32) + self.coding.intercept


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written: counts, and the positive slices of each class in the order of LABEL_ORDER."""

    patients: int
    studies: int
    slices: int
    positive: dict[str, int]


def write(out: Path, patients: int, seed: int, progress: Callable[[int], None] | None = None) -> Summary:
    """Write `out/dicoms/ID_<9 hex>.dcm` and `out/labels.csv`, six lines a slice.

    Args:
        progress: called after each patient with the number of slices written for it.
    """
    folder = out / "dicoms"
    folder.mkdir(parents=True, exist_ok=True)
    positive = np.zeros(len(LABEL_ORDER), np.int64)
    studies = slices = 0
    with (out / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("ID", "Label"))
        for patient in range(patients):
            before = slices
            for number in range(count_studies(seed, patient)):
                study = make_study(seed, patient, number)
                _write_study(folder, study)
                table.writerows(
                    (f"{uid}_{name}", int(label))
                    for uid, row in zip(study.uids, study.labels, strict=True)
                    for name, label in zip(LABEL_ORDER, row, strict=True)
                )
                studies, slices = studies + 1, slices + len(study.uids)
                positive += study.labels.sum(0, dtype=np.int64)
            if progress is not None:
                progress(slices - before)
    return Summary(patients, studies, slices, dict(zip(LABEL_ORDER, positive.tolist(), strict=True)))


def _write_study(folder: Path, study: Study) -> None:
    for uid, position, stored in zip(study.uids, study.geometry.positions, study.stored, strict=True):
        attributes = SliceAttributes(
            sop_instance_uid=uid,
            patient_id=study.patient_id,
            study_instance_uid=study.study_instance_uid,
            series_instance_uid=study.series_instance_uid,
            position=tuple(position.tolist()),
            orientation=study.geometry.orientation,
            spacing_mm=(study.geometry.spacing_mm, study.geometry.spacing_mm),
            bits_stored=study.coding.bits_stored,
            intercept=study.coding.intercept,
            windows=study.windows,
            implicit_vr=study.implicit_vr,
        )
        (folder / f"{uid}.dcm").write_bytes(encode_slice(stored, attributes))


def count_studies(seed: int, patient: int) -> int:
    """1, or 2 for a few patients: 55 of 2,144 had several in RSNA 2019."""
    return 1 + int(np.random.default_rng((seed, patient, 99)).random() < 0.04)


def make_study(seed: int, patient: int, number: int = 0) -> Study:
    """Make one study: a pure function of (seed, patient, number).

    Args:
        number: 0, or 1 for a patient's second study: the same head, another day.
    """
    body = np.random.default_rng((seed, patient))
    head, shape = _draw_head(body), Noise(body)
    size = body.uniform(0.94, 1.05)
    rng = np.random.default_rng((seed, patient, 1 + number))
    bleeds = draw_bleeds(rng, _draw_kinds(seed, patient, rng), head.half_width, head.half_length)
    origin = np.array([rng.normal(0, 3), rng.normal(0, 5), rng.uniform(-200, 200)])
    geometry = _draw_geometry(rng, origin, size)
    coding = CODINGS[rng.choice(len(CODINGS), p=CODING_SHARES)]
    pose = _draw_pose(rng, geometry, origin, size)
    scanner = _Scanner(rng, geometry, coding)
    stored = np.empty((len(geometry.positions), SIDE, SIDE), np.int16 if coding.signed else np.uint16)
    blood = np.empty((len(stored), SIDE // 2, SIDE // 2), np.uint8)
    for k, position in enumerate(geometry.positions):
        hu, blood[k] = _image(head, bleeds, _warp(pose.grid(position), shape), shape)
        stored[k] = scanner.expose(hu, rng)
    pixels = np.stack([np.bincount(plane.ravel(), minlength=6)[1:] for plane in blood])
    area = pixels * (2 * geometry.spacing_mm) ** 2
    labels = (area >= VISIBLE_MM2).astype(np.uint8)
    labels = np.concatenate([labels, labels.max(1, keepdims=True)], 1)
    series = 2 * patient + number
    return Study(
        patient_id=f"ID_{_scramble(patient, 32, seed):08x}",
        study_instance_uid=f"ID_{_scramble(series, 40, seed + 1):010x}",
        series_instance_uid=f"ID_{_scramble(series, 40, seed + 2):010x}",
        uids=tuple(f"ID_{_scramble(64 * series + k, 36, seed + 3):09x}" for k in range(len(stored))),
        geometry=geometry,
        coding=coding,
        windows=_draw_windows(rng),
        implicit_vr=bool(rng.random() < 0.3),
        stored=stored,
        blood=blood,
        labels=labels,
    )


def _scramble(number: int, bits: int, key: int) -> int:
    """A permutation of the integers below 2**bits, so that different numbers never meet."""
    mask = (1 << bits) - 1
    for turn in range(3):
        odd = (0x9E3779B97F4A7C15 + 2 * (key * 0xD1B54A32D192ED03 + turn)) | 1
        number = (number * odd + key + turn) & mask
        number ^= number >> (bits // 2)
    return number


def _draw_kinds(seed: int, patient: int, rng: np.random.Generator) -> list[str]:
    """The kinds of bleeding: in each ten patients five have none, and each kind is the first of one of the others."""
    block = np.random.default_rng((seed, patient // 10, 77)).permutation(10)
    place = int(block[patient % 10])
    if place >= len(CLASSES):
        return []
    extra = {
        "epidural": 0.06,
        "intraparenchymal": 0.18,
        "intraventricular": 0.18,
        "subarachnoid": 0.25,
        "subdural": 0.2,
    }
    return [name for k, name in enumerate(CLASSES) if k == place or rng.random() < extra[name]]


def _draw_head(rng: np.random.Generator) -> Head:
    calcified = []
    if rng.random() < 0.6:
        calcified.append(Blob((0, 26, 14), (2.0, 2.2, 2.5), 0, rng.uniform(120, 350), paired=False))
    if rng.random() < 0.5:
        calcified.append(Blob((23, 33, 24), tuple(rng.uniform(1.5, 3.5, 3)), 20, rng.uniform(90, 300)))
    if rng.random() < 0.25:
        calcified.append(
            Blob((0, rng.uniform(-70, -45), rng.uniform(25, 65)), (1.6, 7, 5), 0, rng.uniform(150, 500), paired=False)
        )
    if rng.random() < 0.12:
        calcified.append(Blob((21, -6, 15), (3, 5, 3), 16, rng.uniform(60, 140)))
    return Head(
        half_width=rng.uniform(63, 70),
        half_length=rng.uniform(79, 87),
        half_height=rng.uniform(74, 82),
        skull_mm=rng.uniform(5.5, 9),
        scalp_mm=rng.uniform(4, 8),
        atrophy=float(rng.beta(1.2, 1.6)),
        calcified=tuple(calcified),
        aerated=rng.uniform(0.5, 1),
    )


def _draw_geometry(rng: np.random.Generator, origin: Array, size: float) -> Geometry:
    """Slices from below the skull base to above the vertex, along the table, tilted in 92 % of studies."""
    tilt = np.deg2rad(rng.uniform(4, 23) if rng.random() < 0.92 else 0.0)
    bottom, top = size * rng.uniform(-52, -36), size * rng.uniform(96, 106)
    if rng.random() < 0.44:
        fine, coarse, change = rng.uniform(2.5, 4.0), rng.uniform(5.0, 7.5), rng.uniform(-15, 25)
        steps = np.concatenate([np.arange(bottom, change, fine), np.arange(change, top, coarse)])
    else:
        steps = np.arange(bottom, top, rng.choice((2.5, 3.0, 4.0, 5.0, 5.0, 5.0)))
    if len(steps) < 20 or len(steps) > 60:
        steps = np.linspace(bottom, top, int(np.clip(len(steps), 20, 60)))
    field_mm = size * rng.uniform(228, 252)
    start = np.array([-field_mm / 2, -field_mm / 2 * np.cos(tilt), field_mm / 2 * np.sin(tilt)])
    table = np.zeros((len(steps), 3))
    table[:, 2] = steps / np.cos(tilt)
    return Geometry(
        origin + start + table, (1.0, 0.0, 0.0, 0.0, float(np.cos(tilt)), float(-np.sin(tilt))), field_mm / SIDE
    )


@dataclass(frozen=True, slots=True)
class _Pose:
    """How the head lies in the scanner: head = turn @ (patient - origin) / size."""

    turn: Array
    origin: Array
    geometry: Geometry
    size: float

    def grid(self, position: Array) -> Grid:
        """Head coordinates of every second pixel of the slice at `position`."""
        right, down = np.reshape(self.geometry.orientation, (2, 3))
        step = np.arange(0, SIDE, 2) * self.geometry.spacing_mm / self.size
        start = self.turn @ (position - self.origin) / self.size
        across, along = self.turn @ right, self.turn @ down
        return Grid(*((start[i] + along[i] * step[:, None] + across[i] * step).astype(np.float32) for i in range(3)))


def _draw_pose(rng: np.random.Generator, geometry: Geometry, origin: Array, size: float) -> _Pose:
    """The gantry is tilted to the head's own planes, nearly; the head is turned and off-centre a little."""
    pitch = np.arcsin(-geometry.orientation[5]) + np.deg2rad(rng.normal(0, 3.5))
    roll, yaw = np.deg2rad(rng.normal(0, 2.0)), np.deg2rad(rng.normal(0, 4.0))
    turn = _rotation(2, yaw) @ _rotation(1, roll) @ _rotation(0, pitch)
    return _Pose(turn, origin + rng.normal(0, (4, 4, 0)), geometry, size)


def _rotation(axis: int, angle: float) -> Array:
    """(3, 3) matrix that turns the coordinates about an axis."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _warp(grid: Grid, noise: Noise) -> Grid:
    """Bend the coordinates a little, so that no two heads and no two halves are alike."""
    x, y, z = grid
    far = Grid(x + 300, y, z)
    return Grid(
        x + 2.2 * noise.smooth(far, 75) + 0.7 * noise.smooth(far, 18),
        y + 2.6 * noise.smooth(Grid(x, y + 300, z), 75) + 0.7 * noise.smooth(Grid(x, y + 300, z), 18),
        z + 2.0 * noise.smooth(Grid(x, y, z + 300), 75),
    )


def _image(head: Head, bleeds: tuple[Bleed, ...], grid: Grid, noise: Noise) -> tuple[Array, Array]:
    """One slice without scanner: (256, 256) HU, and what blood fills each pixel."""
    bones = surfaces(head, grid, noise.smooth(grid, 40))
    total = burden(bleeds, grid, bones)
    tissue = tissues(head, grid, bones, total.pressed, total.swollen, noise)
    return tissue.hu, bleed_into(tissue.hu, tissue, bleeds, total, grid, bones, noise)


class _Scanner:
    """What the scanner adds to the head: holder, noise, scan circle, and stored values."""

    def __init__(self, rng: np.random.Generator, geometry: Geometry, coding: Coding) -> None:
        side_mm = (np.arange(SIDE, dtype=np.float32) - SIDE / 2) * geometry.spacing_mm
        self._holder = _holder(side_mm, rng)
        outside = np.hypot(side_mm, side_mm[:, None]) > SIDE / 2 * geometry.spacing_mm
        self._outside = outside if coding.signed and rng.random() < 0.7 else None
        self._tiles = [_noise_tile(rng) for _ in range(3)]
        self._sigma = rng.uniform(2.2, 4.5)
        self._coding = coding

    def expose(self, hu: Array, rng: np.random.Generator) -> Array:
        """(256, 256) HU -> (512, 512) stored values."""
        image = np.maximum(enlarge(hu), self._holder)
        for tile in self._tiles[:2]:
            image += self._sigma * np.roll(tile, rng.integers(0, SIDE, 2), (0, 1)) * np.float32(0.7071)
        image -= self._coding.intercept
        low, high = self._coding.limits
        stored = np.clip(np.rint(image), max(low, -1024 - self._coding.intercept), high)
        if self._outside is not None:
            stored[self._outside] = PADDING
        return stored


def _holder(side_mm: Array, rng: np.random.Generator) -> Array:
    """(512, 512) HU of the head holder and its foam, the same in every slice; air elsewhere."""
    x, y = side_mm, side_mm[:, None] - np.float32(rng.uniform(-12, 4))
    ring = (np.abs(x / 99) ** np.float32(3) + np.abs(y / 106) ** np.float32(3)) ** np.float32(1 / 3)
    shell = np.clip(1.6 - np.abs(ring - 1) * 100, 0, 1) * np.clip((y + 5) / 3, 0, 1)
    foam = np.clip((1 - ring) * 50, 0, 1) * np.clip((y - 20) / 3, 0, 1)
    return -1000 + 45 * foam + shell * rng.uniform(600, 1050)


def _noise_tile(rng: np.random.Generator) -> Array:
    """(512, 512) noise of a soft-tissue kernel, sigma 1: neighbours agree, pixels three apart disagree."""
    length = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    power = length * np.exp(-np.square(length / 0.17))
    waves = np.fft.rfft2(rng.standard_normal((SIDE, SIDE), np.float32)) * power
    tile = np.fft.irfft2(waves, s=(SIDE, SIDE))
    return (tile / tile.std()).astype(np.float32)


def _draw_windows(rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """Window centre and width as the files write them: often "00036", sometimes several."""
    window = (("00036", "00080"), ("40", "80"), ("30", "80"), ("40", "150"))[rng.integers(4)]
    return (window, window) if rng.random() < 0.2 else (window,)

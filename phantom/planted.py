"""Plant what only a series can tell: bleeds that fade at their ends, and slices out of order."""

from dataclasses import replace

import numpy as np

from phantom.study import BLEEDING, Study, make_study

FAINT = 0.08  # of the blood's contrast: 3 HU, as partial volume leaves it where a bleed reaches just into a slice
SHORTEST = 3  # slices of a bleed that has edges


def make_planted(
    seed: int, patient: int, number: int = 0, *, edges: bool = False, shuffled: bool = False, bleeding: int = BLEEDING
) -> Study:
    """Make a study as `make_study` does, a pure function of its arguments.

    Args:
        edges: the first and the last slice of each bleed show it barely, slices beyond it not at all; labels stay.
        bleeding: patients of each ten that bleed.
        shuffled: the slices lie at each other's positions, in random order; pixels and labels stay theirs.
    """
    study = make_study(seed, patient, number, bleeding=bleeding)
    if edges and study.labels.any():
        study = fade_edges(study, make_study(seed, patient, number, bloodless=True, bleeding=bleeding))
    return shuffle(study, np.random.default_rng((seed, patient, 6, number))) if shuffled else study


def shuffle(study: Study, rng: np.random.Generator) -> Study:
    """Put the slices of a study at each other's positions."""
    order = rng.permutation(len(study.uids))
    return replace(study, geometry=replace(study.geometry, positions=study.geometry.positions[order]))


def fade_edges(study: Study, bare: Study) -> Study:
    """Mix a study with the same one without blood, slice by slice, as `visibility` says."""
    shares = visibility(study.labels)[:, None, None]
    mixed = bare.stored + shares * (study.stored.astype(np.float32) - bare.stored)
    return replace(study, stored=np.rint(mixed).astype(study.stored.dtype))


def visibility(labels: np.ndarray) -> np.ndarray:
    """Return how much of the blood each slice shows, (N,) float32 in [0, 1].

    A slice without a label shows none. One that is the first or the last of every bleed that it has, a bleed being at
    least SHORTEST slices of one class one after the other, shows FAINT of it; others all.

    Args:
        labels: (N, 6), `any` last.
    """
    shown = np.zeros(len(labels), np.float32)
    for column in labels.T[:-1]:
        positive = np.flatnonzero(column)
        for bleed in np.split(positive, np.flatnonzero(np.diff(positive) > 1) + 1):
            of_bleed = np.ones(len(bleed), np.float32)
            if len(bleed) >= SHORTEST:
                of_bleed[[0, -1]] = FAINT
            shown[bleed] = np.maximum(shown[bleed], of_bleed)
    return shown

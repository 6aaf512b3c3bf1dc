"""Studies whose slices can only be classified with their neighbours: bleeds fade at their ends; slices are shuffled."""

from dataclasses import replace

import numpy as np

from phantom.study import BLEEDING, Study, make_study

FAINT = 0.08  # of the blood's contrast: 3 HU, like the partial volume of a bleed that barely reaches into a slice
SHORTEST = 3  # slices of a bleed whose ends fade


def make_planted(  # noqa: PLR0913  # options of the command
    seed: int, patient: int, number: int = 0, *, edges: bool = False, shuffled: bool = False, bleeding: int = BLEEDING
) -> Study:
    """Make a study with `make_study` and modify it; the result depends only on the arguments.

    Args:
        seed, patient, number: see `make_study`.
        edges: whether bleeds are faint in their first and last slice, and absent from slices without a label.
        shuffled: whether to shuffle the positions of the slices, which keep their pixels and labels.
        bleeding: number of patients out of ten with a bleed.
    """
    study = make_study(seed, patient, number, bleeding=bleeding)
    if edges and study.labels.any():
        study = fade_edges(study, make_study(seed, patient, number, bloodless=True, bleeding=bleeding))
    return shuffle(study, np.random.default_rng((seed, patient, 6, number))) if shuffled else study


def shuffle(study: Study, rng: np.random.Generator) -> Study:
    """Shuffle the positions of the slices of a study."""
    order = rng.permutation(len(study.uids))
    return replace(study, geometry=replace(study.geometry, positions=study.geometry.positions[order]))


def fade_edges(study: Study, bare: Study) -> Study:
    """Blend each slice of a study with the same slice without blood, according to `visibility`."""
    shares = visibility(study.labels)[:, None, None]
    mixed = bare.stored + shares * (study.stored.astype(np.float32) - bare.stored)
    return replace(study, stored=np.rint(mixed).astype(study.stored.dtype))


def visibility(labels: np.ndarray) -> np.ndarray:
    """Return the visible share of the blood in each slice, (N,) float32 in [0, 1].

    It is 0 without a label, and FAINT in a slice that is the first or the last of each of its bleeds, which are runs of
    at least SHORTEST slices with the same class; otherwise 1.

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

"""Predictions on slices, pooled to one per series, study or patient."""

import numpy as np
import pandas as pd

from training.data.neighbours import SERIES
from training.scores.metrics import SOFT_THRESHOLD
from training.scores.predictions import Predictions

# A SeriesInstanceUID alone does not identify a series, because patients or studies share one in some data sets.
LEVELS = {"series": SERIES, "study": SERIES[:2], "patient": SERIES[:1]}
# The levels scored in addition to that of the labels. With labelled slices, studies add little to series.
COARSER = {"slice": ("series", "patient"), "series": ("patient",), "study": ("patient",), "patient": ()}
PLURAL = {"slice": "slices", "series": "series", "study": "studies", "patient": "patients"}


def at_level(known: Predictions, level: str) -> Predictions:
    """Return the predictions at a level: unchanged for "slice", pooled otherwise."""
    return known if level == "slice" else pool(known, level)


def pool(known: Predictions, level: str) -> Predictions:
    """Return one line per series, study or patient, which has a finding if any of its slices has.

    The probability is the largest of the slices' probabilities. It ranks well but is not calibrated, since the largest
    of many is high by chance. The label is the largest label too, but NaN if that is negative and some slice has no
    label, because that slice may have the finding. The other columns are those of the slice with the largest
    probability of any class.

    Args:
        known: predictions on slices.
        level: "series", "study" or "patient".
    """
    groups = known.slices.groupby(LEVELS[level], sort=True)
    index = groups.ngroup().to_numpy()
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(groups.ngroups))
    absent = np.isnan(known.labels)[order]
    labels = np.where(absent, 0.0, known.labels[order])
    if len(starts):
        labels, absent = np.maximum.reduceat(labels, starts), np.logical_or.reduceat(absent, starts)
    surest = pd.Series(known.probabilities.max(axis=1, initial=0)).groupby(index).idxmax().to_numpy(np.int64)
    return Predictions(
        slices=known.slices.iloc[surest].reset_index(drop=True),
        classes=known.classes,
        labels=np.where(absent & (labels < SOFT_THRESHOLD), np.nan, labels),
        probabilities=np.maximum.reduceat(known.probabilities[order], starts) if len(starts) else known.probabilities,
    )


def patient_groups(known: Predictions) -> tuple[np.ndarray, int]:
    """Return the patient of each line, (N,) int64 from 0, and the number of patients."""
    codes, names = pd.factorize(known.slices["patient_id"], sort=True)
    return codes.astype(np.int64), len(names)

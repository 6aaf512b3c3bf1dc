"""Pool the predictions on slices into one for each series, study or patient."""

import numpy as np
import pandas as pd

from training.data.neighbours import SERIES
from training.scores.metrics import SOFT_THRESHOLD
from training.scores.predictions import Predictions

# A SeriesInstanceUID alone tells no series: there are sets in which patients or studies share one.
LEVELS = {"series": SERIES, "study": SERIES[:2], "patient": SERIES[:1]}
# What is scored beside the level that labels are for: where slices have labels, studies say little that series do not.
COARSER = {"slice": ("series", "patient"), "series": ("patient",), "study": ("patient",), "patient": ()}
PLURAL = {"slice": "slices", "series": "series", "study": "studies", "patient": "patients"}


def at_level(known: Predictions, level: str) -> Predictions:
    """Return predictions on slices as they are, or one for each series, study or patient."""
    return known if level == "slice" else pool(known, level)


def pool(known: Predictions, level: str) -> Predictions:
    """Return one line for each series, study or patient: a finding anywhere is a finding of the whole.

    The probability is the largest of the slices'. It ranks well but is no longer calibrated: the largest of many
    is high by chance. The label is the largest too, but NaN where it would be negative and a slice has none: among
    unlabelled slices one may have the finding. What else is known is that of the slice with the largest probability.

    Args:
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
    """Return the patient of each line, (N,) int64 from 0 on, and how many there are."""
    codes, names = pd.factorize(known.slices["patient_id"], sort=True)
    return codes.astype(np.int64), len(names)

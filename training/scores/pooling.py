"""This file pools the predictions on slices into one for each series or patient."""

import numpy as np
import pandas as pd

from training.scores.predictions import Predictions

LEVELS = {"series": "series_instance_uid", "patient": "patient_id"}


def pool(known: Predictions, level: str) -> Predictions:
    """Return one line for each series or patient: a finding anywhere is a finding of the whole.

    The probability is the largest of the slices'. It ranks well but is no longer calibrated: the largest of many
    is high by chance. The label is 1 if any slice has it, 0 if all slices are labelled 0, else NaN: among
    unlabelled slices one may have it.

    Args:
        level: "series" or "patient".
    """
    name = LEVELS[level]
    groups = known.slices.groupby(name, sort=True)
    index = groups.ngroup().to_numpy()
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(groups.ngroups))
    # NaN beats 0 and loses to 1.
    ranked = np.where(np.isnan(known.labels), 0.5, known.labels)[order]
    labels = np.maximum.reduceat(ranked, starts) if len(starts) else ranked
    first = groups.first().reset_index()
    return Predictions(
        slices=pd.DataFrame({column: first[column] for column in known.slices.columns}),
        classes=known.classes,
        labels=np.where(labels == 0.5, np.nan, labels),
        probabilities=np.maximum.reduceat(known.probabilities[order], starts) if len(starts) else known.probabilities,
    )


def patient_groups(known: Predictions) -> tuple[np.ndarray, int]:
    """Return the patient of each line, (N,) int64 from 0 on, and how many there are."""
    codes, names = pd.factorize(known.slices["patient_id"], sort=True)
    return codes.astype(np.int64), len(names)

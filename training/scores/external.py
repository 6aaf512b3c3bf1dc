"""This file chooses the slices of an external set, and refuses those that a run has learned from."""

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.errors import RunError
from training.run.runs import Run, check_same_kind
from training.scores.content import pixel_codes, read_content
from training.scores.leakage import blank, listed


def external_lines(run: Run, cache: Cache) -> np.ndarray:
    """Return all lines of another cache that have a label, (n,) int64.

    Raises:
        RunError: none has a label; or a patient of the run's training or validation is among them, under that name
            or, slice by slice, under another.
        CacheError: the cache has no labels, or not the run's size.
    """
    check_same_kind(run, cache)
    labelled = np.flatnonzero(~np.isnan(cache.labels()).all(axis=1))
    if not len(labelled):
        raise RunError(f"{cache.path}: no slice has a label; run: pipeline build ... --labels FILE")
    split = pd.read_csv(run.split, dtype=str, keep_default_na=False)
    side = cache.table["patient_id"].iloc[labelled].map(split.set_index("patient_id")["split"])
    images = cache.table["image_id"].to_numpy()[labelled]
    learned = side.isin(["train", "validation"]).to_numpy()
    if learned.any():
        patients = cache.table["patient_id"].iloc[labelled][learned].unique().tolist()
        raise RunError(
            f"{cache.path}: {len(patients)} of its patients were in the run's training or validation: "
            f"{listed(patients)}; with slices {listed(images[learned].tolist())}; leave them out of the external set"
        )
    # A patient of the run's test set taught it nothing; one that the run does not know by name must have new slices.
    renamed = side.isna().to_numpy() & _seen(run, cache, labelled)
    if renamed.any():
        raise RunError(
            f"{cache.path}: {renamed.sum()} of its slices are in the run's cache, by SOP Instance UID or by all their "
            f"grey levels, under patients of other names: {listed(images[renamed].tolist())}; leave those patients "
            "out of the external set"
        )
    return labelled


def _seen(run: Run, cache: Cache, lines: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether the run's cache has the slice, or another, not blank, of the same grey levels."""
    content = read_content(run.path)
    sums = cache.sums(run.config.size_px, cache.table["row"].to_numpy()[lines])
    same_pixels = np.isin(pixel_codes(sums), content.pixels) & ~blank(sums, run.config.size_px)
    return np.isin(cache.keys[lines], content.keys) | same_pixels

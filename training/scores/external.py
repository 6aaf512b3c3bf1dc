"""Choose the slices of an external set, and leave out the patients whom a run may have learned from."""

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.pixels import blank, pixel_codes, trivial
from training.data.shards import SliceReader
from training.data.split import read_lines
from training.errors import RunError
from training.run.runs import Run, check_same_kind
from training.scores.content import read_content
from training.scores.leakage import listed

BY_NAME = "was in the run's training or validation"
BY_SLICE = "has a slice of the run's cache, by SOP Instance UID or by all its grey levels"


def external_lines(run: Run, cache: Cache) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the lines of another cache that may be scored, and the patients who may not.

    Scored is every slice with a label, but of no patient who was in the run's training or validation, nor of one whom
    the run's cache does not know by name but by a slice: all slices of such a patient are left out, for those that
    the run has not seen are of a head that it has. A patient of the run's test set taught it nothing.

    Returns:
        (n,) int64 lines; and a table of patient_id, slices, reason, and image_id, one such slice.

    Raises:
        RunError: no slice has a label, or none is left.
        CacheError: the cache has no labels, or not the run's size.
    """
    check_same_kind(run, cache)
    labelled = np.flatnonzero(~np.isnan(cache.labels()).all(axis=1))
    if not len(labelled):
        raise RunError(f"{cache.path}: no slice has a label; run: pipeline build ... --labels FILE")
    split = read_lines(run.split)
    slices = cache.table.iloc[labelled]
    subset = slices["patient_id"].map(split.set_index("patient_id")["split"])
    learned = subset.isin(["train", "validation"]).to_numpy()
    seen = subset.isna().to_numpy() & _seen(run, cache, labelled)
    found = slices[["patient_id", "image_id"]].assign(reason=np.where(learned, BY_NAME, BY_SLICE))[learned | seen]
    left_out = found.drop_duplicates("patient_id").sort_values("patient_id")
    gone = slices["patient_id"].isin(left_out["patient_id"]).to_numpy()
    counts = left_out["patient_id"].map(slices["patient_id"][gone].value_counts())
    left_out.insert(1, "slices", counts.astype(np.int64))  # where nobody is left out, pandas takes it for text
    if gone.all():
        raise RunError(
            f"{cache.path}: nothing is left to score: each of its {len(left_out)} labelled patients was in the run's "
            "training or validation, or shares a slice with the run's cache: "
            f"{listed(left_out['patient_id'].tolist())}; give a cache with other patients"
        )
    return labelled[~gone], left_out.reset_index(drop=True)


def _seen(run: Run, cache: Cache, lines: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether the run's cache has the slice, or another, not trivial, of the same grey levels."""
    content = read_content(run.path)
    sums = cache.sums(run.config.size_px, cache.table["row"].to_numpy()[lines])
    same = np.isin(pixel_codes(sums), content.pixels) & ~blank(sums, run.config.size_px)
    suspects = np.flatnonzero(same)
    reader = SliceReader(cache, run.config.size_px, lines[suspects])
    image = np.empty((1, int(np.prod(reader.shape))), np.uint8)
    for which, at in enumerate(suspects.tolist()):
        reader.read(np.array([which]), image)
        same[at] = not trivial(image.reshape(reader.shape))
    return np.isin(cache.keys[lines], content.keys) | same

"""The slices of an external set, without the patients from whom a run may have learned."""

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.pixels import blank, pixel_codes, trivial
from training.data.shards import SliceReader
from training.data.split import read_lines
from training.errors import RunError
from training.run.runs import Run, check_compatible
from training.scores.content import read_content
from training.scores.leakage import listed

BY_NAME = "is in the run's training or validation set"
BY_SLICE = "shares a slice with the run's cache: same SOP Instance UID or same grey levels"


def external_lines(run: Run, cache: Cache) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the lines of another cache that may be scored, and the patients who are left out.

    These are the slices with a label, except those of a patient who is in the run's training or validation set, or
    whose id is not in the run's cache but who shares a slice with it. All slices of such a patient are left out, since
    the run may know the same head from other slices. Patients of the run's test set stay, as the run did not learn
    from them.

    Returns:
        (n,) int64 lines; and a table with one line per patient left out: patient_id, slices, reason, and the image_id
        of one of these slices.

    Raises:
        RunError: if no slice has a label, none is left, or the cache has other windows or classes than the run.
        CacheError: if the cache does not have the run's image size.
    """
    check_compatible(run, cache)
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
    excluded = slices["patient_id"].isin(left_out["patient_id"]).to_numpy()
    counts = left_out["patient_id"].map(slices["patient_id"][excluded].value_counts())
    left_out.insert(1, "slices", counts.astype(np.int64))  # an empty column would be text
    if excluded.all():
        raise RunError(
            f"{cache.path}: nothing is left to score: each of its {len(left_out)} labelled patients is in the run's "
            "training or validation set, or shares a slice with the run's cache: "
            f"{listed(left_out['patient_id'].tolist())}; give a cache with other patients"
        )
    return labelled[~excluded], left_out.reset_index(drop=True)


def _seen(run: Run, cache: Cache, lines: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether the run's cache has the slice, or a non-trivial slice with the same grey levels."""
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

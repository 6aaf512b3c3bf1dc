"""Detect leakage, which makes test scores too good: a patient, or the same slice, in two subsets."""

import pandas as pd

from training.data.cache import Cache
from training.data.pixels import same_pixels
from training.data.split import read_lines
from training.errors import RunError
from training.run.runs import Run

MAX_NAMES = 20


def check_leakage(split: pd.DataFrame, cache: Cache, size_px: int) -> None:
    """Raise a RunError that names the slices if a patient, or the same slice, is in two subsets.

    Args:
        split: `patient_id, split`; patients may occur more than once, since a run's split.csv may have been edited.
        cache: the cache with the slices.
        size_px: size of the images to compare.
    """
    table = cache.table
    if patients := patients_in_two_subsets(split):
        slices = table.loc[table["patient_id"].isin(patients), "image_id"].tolist()
        raise RunError(
            f"split.csv: patient {listed(patients)} is in two subsets, with slices {listed(slices)}; "
            "restore the file, or start a new run"
        )
    subset_of = split.set_index("patient_id")["split"].to_dict()
    shared = []
    for lines in same_pixels(cache, size_px):
        pairs = table.loc[lines, ["image_id", "patient_id"]].to_numpy().tolist()
        subsets = [subset_of.get(patient, "no subset") for _, patient in pairs]
        if len(set(subsets)) > 1:
            shared.append(
                " = ".join(f"{image} ({patient}, {of})" for (image, patient), of in zip(pairs, subsets, strict=True))
            )
    if shared:
        raise RunError(
            f"split.csv: patients in different subsets share the same pixels: {listed(shared, '; ')}; patients who "
            "share slices must be in one subset, as they were when the run started: restore the file, or start a new "
            "run"
        )


def check_run(run: Run, cache: Cache) -> None:
    """Check the current split.csv of a run; raises the same errors as `check_leakage`."""
    check_leakage(read_lines(run.split), cache, run.config.size_px)


def patients_in_two_subsets(split: pd.DataFrame) -> list[str]:
    """Return the patients who are in more than one subset."""
    subsets = split.groupby("patient_id")["split"].nunique()
    return subsets.index[subsets > 1].tolist()


def listed(names: list[str], separator: str = ", ") -> str:
    """Return the first twenty names as text, and the number of further ones."""
    more = len(names) - MAX_NAMES
    return separator.join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")

"""Find what would make test scores too good: a patient, or the same slice, in two subsets."""

import pandas as pd

from training.data.cache import Cache
from training.data.pixels import same_pixels
from training.data.split import read_lines
from training.errors import RunError
from training.run.runs import Run

MOST_NAMED = 20


def check_leakage(split: pd.DataFrame, cache: Cache, size_px: int) -> None:
    """Raise a RunError that names the slices if scores on this split would be too good.

    Args:
        split: `patient_id, split`, a line as often as there is one: a run's split.csv may have been edited.
        cache: with the slices.
        size_px: which images to compare.
    """
    table = cache.table
    if doubled := patients_in_two_subsets(split):
        slices = table.loc[table["patient_id"].isin(doubled), "image_id"].tolist()
        raise RunError(
            f"split.csv: patient {listed(doubled)} is in two subsets, with slices {listed(slices)}; "
            "restore the file, or start a new run"
        )
    subset_of = split.set_index("patient_id")["split"].to_dict()
    broken = []
    for lines in same_pixels(cache, size_px):
        pairs = table.loc[lines, ["image_id", "patient_id"]].to_numpy().tolist()
        subsets = [subset_of.get(patient, "no subset") for _, patient in pairs]
        if len(set(subsets)) > 1:
            broken.append(
                " = ".join(f"{image} ({patient}, {of})" for (image, patient), of in zip(pairs, subsets, strict=True))
            )
    if broken:
        raise RunError(
            f"split.csv: patients in different subsets share the same pixels: {listed(broken, '; ')}; patients who "
            "share slices belong in one subset, as they were in the run: restore the file, or start a new run"
        )


def check_run(run: Run, cache: Cache) -> None:
    """Check a run's split, as its split.csv has it now; raises as `check_leakage`."""
    check_leakage(read_lines(run.split), cache, run.config.size_px)


def patients_in_two_subsets(split: pd.DataFrame) -> list[str]:
    """Return the patients that the lines of split.csv put in more than one subset."""
    subsets = split.groupby("patient_id")["split"].nunique()
    return subsets.index[subsets > 1].tolist()


def listed(names: list[str], separator: str = ", ") -> str:
    """Return the first twenty names in words, and how many more there are."""
    more = len(names) - MOST_NAMED
    return separator.join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

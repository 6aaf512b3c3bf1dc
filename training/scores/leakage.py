"""This file finds what would make test scores too good: a patient on two sides, or one patient under two names."""

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.shards import SliceReader
from training.errors import RunError
from training.run.runs import Run
from training.scores.content import pixel_codes

MOST_NAMED = 20


def check_leakage(split: pd.DataFrame, cache: Cache, size_px: int) -> None:
    """Raise a RunError that names the slices if scores on this split would be too good.

    Args:
        split: `patient_id, split`, a line as often as there is one: a run's split.csv may have been edited.
        cache: with the slices.
        size_px: which images to compare.
    """
    table = cache.table
    if doubled := patients_on_two_sides(split):
        slices = table.loc[table["patient_id"].isin(doubled), "image_id"].tolist()
        raise RunError(
            f"split.csv: patient {listed(doubled)} is on two sides, with slices {listed(slices)}; "
            "restore the file, or start a new run"
        )
    if groups := same_pixels(cache, size_px):
        of_patient = split.set_index("patient_id")["split"].to_dict()
        named = [
            " = ".join(f"{image} ({patient}, {of_patient.get(patient, 'no side')})" for image, patient in pairs)
            for pairs in (table.loc[lines, ["image_id", "patient_id"]].to_numpy().tolist() for lines in groups)
        ]
        raise RunError(
            f"{cache.path}: the same pixels under several patients, so that a split by patient does not hold: "
            f"{listed(named, '; ')}; give them one patient id or leave one out, build again, and start a new run"
        )


def check_run(run: Run, cache: Cache) -> None:
    """Check a run's split, as its split.csv has it now; raises as `check_leakage`."""
    check_leakage(pd.read_csv(run.split, dtype=str, keep_default_na=False), cache, run.config.size_px)


def patients_on_two_sides(split: pd.DataFrame) -> list[str]:
    """Return the patients that the lines of split.csv put on more than one side."""
    sides = split.groupby("patient_id")["split"].nunique()
    return sides.index[sides > 1].tolist()


def same_pixels(cache: Cache, size_px: int) -> list[np.ndarray]:
    """Return groups of lines whose images are equal in every pixel and which have more than one patient.

    Images of one grey level a channel are left out: air is 0 in every window, so blank slices are all alike. The
    sums of grey levels, which the cache has at hand, tell nearly all images apart; only those with equal sums are
    read.
    """
    table = cache.table
    sums = cache.sums(size_px, table["row"].to_numpy())
    codes = pd.Series(pixel_codes(sums))
    told = ~blank(sums, size_px)
    suspects = np.concatenate([[], *_of_several_patients(codes, table["patient_id"], told)]).astype(np.int64)
    if not len(suspects):
        return []
    return _of_several_patients(
        _pixel_codes(cache, size_px, suspects), table["patient_id"], np.isin(table.index, suspects)
    )


def blank(sums: np.ndarray, size_px: int) -> np.ndarray:
    """Return (n,) bool: whether each channel of an image has one grey level, from its sums, (n, C, 2) uint64."""
    # Where all pixels are equal, and only there, sum squared is the number of pixels times the sum of squares.
    return (sums[..., 0] ** 2 == sums[..., 1] * np.uint64(size_px**2)).all(axis=1)


def _of_several_patients(codes: pd.Series, patients: pd.Series, among: np.ndarray) -> list[np.ndarray]:
    groups = patients[among].groupby(codes[among])
    several = groups.transform("nunique") > 1
    chosen = codes[among][several]
    return [lines.to_numpy() for lines in chosen.groupby(chosen).groups.values()]


def _pixel_codes(cache: Cache, size_px: int, lines: np.ndarray) -> pd.Series:
    """Return a code for each line, equal for equal images; NaN for lines that are not among `lines`."""
    reader = SliceReader(cache, size_px, lines)
    image = np.empty((1, int(np.prod(reader.shape))), np.uint8)
    seen: dict[bytes, int] = {}
    codes = pd.Series(np.nan, index=cache.table.index)
    for which, line in enumerate(lines):
        reader.read(np.array([which]), image)
        codes[line] = seen.setdefault(image.tobytes(), len(seen))
    return codes


def listed(names: list[str], separator: str = ", ") -> str:
    """Return the first twenty names in words, and how many more there are."""
    more = len(names) - MOST_NAMED
    return separator.join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

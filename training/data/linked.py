"""Join patients who share slices, so that a split by patient does not leak, and list them in linked.csv."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from training.data.cache import Cache, slice_keys
from training.data.pixels import same_pixels
from training.errors import RunError
from training.words import counted

FILE = "linked.csv"
IDENTITY = (
    "image_id",
    "sop_instance_uid",
    "frame",
    "patient_id",
    "study_instance_uid",
    "series_instance_uid",
)
JOINED, LEFT_OUT = "joined", "left out: its labels contradict those of the same pixels"
MOST_JOINED = 0.05  # of all patients in one unit; a larger unit is reported, with the slices that join it
MOST_NAMED = 5


@dataclass(frozen=True)
class Links:
    """The patients who share slices.

    Attributes:
        groups: (n,) lines of each group of identical slices that belong to several patients.
        units: (N,) object, for each line the unit that is kept in one subset: the smallest id among the patients who
            are joined, directly or through others; the patient's own id if nothing is shared.
        left_out: (N,) bool, lines that are neither trained on nor scored, because the labels of their group contradict
            each other.
    """

    groups: tuple[np.ndarray, ...] = field(repr=False)
    units: np.ndarray = field(repr=False)
    left_out: np.ndarray = field(repr=False)


def link(cache: Cache, size_px: int) -> Links:
    """Find the patients of a cache who share slices, which are those with identical pixels at one size."""
    groups = tuple(same_pixels(cache, size_px))
    left_out = np.zeros(cache.num_slices, bool)
    labels = cache.labels() if cache.classes else np.empty((cache.num_slices, 0), np.float32)
    if cache.label_level == "slice":  # two series may share a slice but differ in a finding that is not on it
        for lines in groups:
            left_out[lines] = contradict(labels[lines])
    return Links(groups, join(cache.table["patient_id"], groups), left_out)


def join(patient_ids: pd.Series, groups: Sequence[np.ndarray]) -> np.ndarray:
    """Return the unit of each line, (N,) object: the connected components of patients who share a group.

    Args:
        patient_ids: (N,) str.
        groups: (n,) lines of each group.
    """
    codes, names = pd.factorize(patient_ids, sort=True)
    if not groups:
        return names.to_numpy(object)[codes]
    from scipy.sparse import coo_array  # type: ignore[import-untyped]  # takes 0.2 s; most caches share nothing
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    first = np.concatenate([np.full(len(lines), codes[lines[0]]) for lines in groups])
    other = np.concatenate([codes[lines] for lines in groups])
    pairs = coo_array((np.ones(len(first), np.int8), (first, other)), shape=(len(names), len(names)))
    count, component = connected_components(pairs, directed=False)
    least = np.full(count, len(names))
    np.minimum.at(least, component, np.arange(len(names)))
    return names.to_numpy(object)[least[component[codes]]]


def contradict(labels: np.ndarray) -> bool:
    """Return whether labels of identical slices, (n, K) float, NaN if absent, are on both sides of 0.5 in any class."""
    return bool(((labels >= 0.5).any(axis=0) & (labels < 0.5).any(axis=0)).any())


def table_of(links: Links, cache: Cache) -> pd.DataFrame:
    """Return the rows of linked.csv: group (from 1), unit, the slice's identifiers, its labels, and what was done."""
    lines = np.concatenate([np.empty(0, np.int64), *links.groups])
    table = cache.table[[*IDENTITY, *cache.classes]].iloc[lines].reset_index(drop=True)
    table.insert(0, "group", np.repeat(np.arange(1, len(links.groups) + 1), [len(of) for of in links.groups]))
    table.insert(1, "unit", links.units[lines])
    return table.assign(done=np.where(links.left_out[lines], LEFT_OUT, JOINED))


def read_linked(path: Path) -> pd.DataFrame:
    """Read linked.csv.

    Raises:
        RunError: if it is missing or damaged.
    """
    try:
        texts = {name: str for name in ("unit", *IDENTITY, "done") if name != "frame"}
        table = pd.read_csv(path, dtype=texts, keep_default_na=False)
        return table.astype({"group": np.int64, "frame": np.int64})
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: cannot be read ({error}); restore it, or start a new run") from error


def left_out_lines(linked: pd.DataFrame, cache: Cache) -> np.ndarray:
    """Return (N,) bool: the lines of a cache that linked.csv lists as left out, identified by slice, not by row."""
    gone = linked[linked["done"] == LEFT_OUT]
    return np.isin(cache.keys, slice_keys(gone["sop_instance_uid"], gone["frame"]))


def describe(linked: pd.DataFrame, num_patients: int) -> list[str]:
    """Summarise linked.csv in sentences; an empty list if nothing is shared."""
    if not len(linked):
        return []
    units = linked.groupby("unit")["patient_id"].nunique()
    gone = linked[linked["done"] == LEFT_OUT]
    summary = [
        f"groups of identical slices under several patients: {linked['group'].nunique():,} ({FILE}); {units.sum():,} "
        f"patients are joined into {len(units):,} units for the split, so that no group is in two subsets"
    ]
    if len(gone):
        summary.append(
            f"groups whose labels contradict each other: {gone['group'].nunique():,}, with "
            f"{counted(len(gone), 'slice')}, which are neither trained on nor scored"
        )
    return summary + [
        _large(linked[linked["unit"] == unit], count, num_patients) for unit, count in units.items()
        if count > MOST_JOINED * num_patients and count > 1
    ]  # fmt: skip


def _large(members: pd.DataFrame, count: int, num_patients: int) -> str:
    groups = members.groupby("group").agg(patients=("patient_id", "nunique"), image=("image_id", "first"))
    most = groups.sort_values("patients", ascending=False, kind="stable").head(MOST_NAMED)
    named = ", ".join(f"{image} under {n:,} patients" for n, image in most.itertuples(index=False))
    more = len(groups) - len(most)
    return (
        f"{count:,} of {num_patients:,} patients ({100 * count / num_patients:.0f} %) are joined into one unit, which "
        f"is in the training set; they are joined by {named}" + (f" and {more:,} more groups" if more else "")
    )

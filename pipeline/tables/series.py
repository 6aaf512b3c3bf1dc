"""The positions of slices in their series, z_mm and z_norm, and the geometry of each series."""

import numpy as np
import pandas as pd

AXES = ("x", "y", "z")
# By the standard a SeriesInstanceUID is unique, but after copying or de-identification, several studies may share one.
SERIES_KEY = ("patient_id", "study_instance_uid", "series_instance_uid")
# Normals that are equal when rounded count as one orientation: scanners write direction cosines with 4 to 7 digits.
_SAME_DIRECTION_DECIMALS = 3
# Positions that differ by at most this count as one: scanners write them with a precision of 0.001 mm or better.
SAME_POSITION_MM = 0.001
# Number of adjacent spacings whose median is the usual spacing, so that a single outlier does not matter.
_USUAL_OF = 3
# A missing slice doubles a spacing; scanners with uneven spacing vary less than this from one spacing to the next.
_GAP_FACTOR = 1.5


def place_slices(slices: pd.DataFrame) -> pd.DataFrame:
    """Determine the position of each slice in its series; the order of the lines does not matter.

    All slices of a series are placed by the same quantity: the position along the normal, SliceLocation or
    InstanceNumber, whichever most of its slices have, in this order if several are equal. Slices without it have no
    position. Positions that are all the same are ignored if the SliceLocations of the series differ. A series has one
    normal: that of the most frequent orientation, and of equally frequent ones, that of the smallest SOP Instance UID.
    Its largest component is made positive. A series without orientations counts as axial.

    Args:
        slices: one line per slice with patient_id, study_instance_uid, series_instance_uid, sop_instance_uid, frame;
            position px, py, pz (mm); orientation rx, ry, rz, cx, cy, cz (direction cosines of row and column);
            slice_location (mm); instance_number; NaN if absent.

    Returns:
        One line per slice, indexed as `slices`:
        z_mm: float64, mm; NaN if the slice was placed by InstanceNumber or not at all.
        z_norm: float64 in [0, 1], (z - min) / (max - min) within the series; 0.5 if the slice has no position, or the
            series only one.
        z_from: "position", "slice_location", "instance_number" or "none".

    Source: DICOM PS3.3 C.7.6.2.1.1 (ImagePositionPatient, ImageOrientationPatient).
    """
    series, num_series = _number_series(slices)
    along = _project(slices, series, num_series)
    candidates = np.stack(
        [along, slices["slice_location"].to_numpy(float), slices["instance_number"].to_numpy(float)]
    )  # (3, slices)
    known = ~np.isnan(candidates)
    counts = np.stack([np.bincount(series, weights=row, minlength=num_series) for row in known])  # (3, series)
    stuck = ~_spread(candidates[0], series, num_series) & _spread(candidates[1], series, num_series)
    counts[0, stuck] = 0
    chosen = counts.argmax(axis=0)[series]  # the first of the largest
    z = np.take_along_axis(candidates, chosen[None], axis=0)[0]
    placed = ~np.isnan(z)
    names = np.array(["position", "slice_location", "instance_number", "none"], object)
    return pd.DataFrame(
        {
            "z_mm": np.where(chosen < 2, z, np.nan),
            "z_norm": _normalise(z, series, num_series),
            "z_from": names[np.where(placed, chosen, 3)],
        },
        index=slices.index,
    )


def series_facts(slices: pd.DataFrame) -> pd.DataFrame:
    """Describe the geometry of each series, for the report.

    Args:
        slices: as for `place_slices`.

    Returns:
        One line per series, sorted and indexed by `SERIES_KEY`:
        slices: number of slices.
        z_from: that of most slices.
        spacing_median_mm, spacing_min_mm, spacing_max_mm: between adjacent positions; NaN if there are fewer than two.
        uneven: bool, whether spacings differ by more than 0.1 mm.
        gaps: number of spacings above 1.5 x the usual spacing both before and after them, which is the median of up to
            three spacings, so that a change of spacing is not a gap.
        repeated: number of slices at the position of another slice.
        tilt_degrees: median angle between the normal and the body's axis; NaN without orientations.
        orientations: number of different orientations.
    """
    series, num_series = _number_series(slices)
    placed = place_slices(slices)
    normals, has_normal = _normals(slices)
    directions = _number_directions(normals, has_normal, series)
    tilt = np.degrees(np.arccos(np.clip(np.abs(normals[:, 2]), 0, 1)))
    per_slice = pd.DataFrame(
        {
            "series": series,
            "z": placed["z_mm"].to_numpy(),
            "z_from": placed["z_from"].to_numpy(),
            "tilt": np.where(has_normal, tilt, np.nan),
            "direction": np.where(has_normal, directions, np.nan),
        }
    )
    grouped = per_slice.groupby("series")
    by_step = per_slice.value_counts(["series", "z_from"]).reset_index().drop_duplicates("series").set_index("series")
    facts = pd.DataFrame({"slices": grouped.size(), "z_from": by_step["z_from"]})
    facts = facts.assign(**_spacing_facts(per_slice, num_series))
    facts["tilt_degrees"] = grouped["tilt"].median()
    facts["orientations"] = grouped["direction"].nunique()
    keys = slices[list(SERIES_KEY)].drop_duplicates().sort_values(list(SERIES_KEY))
    facts.index = pd.MultiIndex.from_frame(keys)
    return facts


def _spacing_facts(per_slice: pd.DataFrame, num_series: int) -> dict[str, np.ndarray]:
    ordered = per_slice.dropna(subset="z").sort_values(["series", "z"], kind="stable")
    steps = ordered.groupby("series")["z"].diff()
    same = (steps <= SAME_POSITION_MM).to_numpy()
    series = ordered["series"].to_numpy()
    spacings = pd.DataFrame({"series": series, "mm": steps.to_numpy()})[~same].dropna()
    grouped = spacings.groupby("series")["mm"]
    every = pd.RangeIndex(num_series)
    median, low, high = (found.reindex(every).to_numpy() for found in (grouped.median(), grouped.min(), grouped.max()))
    return {
        "spacing_median_mm": median,
        "spacing_min_mm": low,
        "spacing_max_mm": high,
        "uneven": high - low > 0.1,
        "gaps": np.bincount(spacings["series"][_is_gap(spacings)], minlength=num_series),
        "repeated": np.bincount(series[same], minlength=num_series),
    }


def _is_gap(spacings: pd.DataFrame) -> np.ndarray:
    """Return which spacings are gaps, (spacings,) bool: wider than usual before and after; an end has one side."""
    grouped = spacings.groupby("series")["mm"]
    steps = range(1, _USUAL_OF + 1)
    before, after = (
        pd.concat([grouped.shift(side * step) for step in steps], axis=1).median(axis=1) for side in (1, -1)
    )
    return (spacings["mm"] > _GAP_FACTOR * np.fmax(before, after)).to_numpy()


def _number_series(slices: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Return the number of each slice's series, in the order of `SERIES_KEY`, and the number of series."""
    every = np.zeros(len(slices), np.int64)
    for column in SERIES_KEY:
        codes, values = pd.factorize(slices[column], sort=True)
        every = np.unique(every * max(len(values), 1) + codes, return_inverse=True)[1]
    return every, int(every.max(initial=-1)) + 1


def count_shared_uids(slices: pd.DataFrame) -> int:
    """Return how many Series Instance UIDs occur in more than one study, in each of which they are another series."""
    series = slices[list(SERIES_KEY)].drop_duplicates()
    return int((series["series_instance_uid"].value_counts() > 1).sum())


def _project(slices: pd.DataFrame, series: np.ndarray, num_series: int) -> np.ndarray:
    """Project each position on the normal of its series, (slices,) float64, mm; NaN without position."""
    normals, has_normal = _normals(slices)
    representative = _choose_representatives(slices, normals, has_normal, series, num_series)
    normal = np.where((representative >= 0)[:, None], normals[representative], (0.0, 0.0, 1.0))
    of_series = normal[series]
    positions = slices[["px", "py", "pz"]].to_numpy(float)
    # Not a matrix product, which may add in another order on another machine or for another number of slices.
    along = positions[:, 0] * of_series[:, 0] + positions[:, 1] * of_series[:, 1] + positions[:, 2] * of_series[:, 2]
    return along


def _normals(slices: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (slices, 3) unit normals, the largest component positive, and (slices,) bool, which slices have one."""
    normals = np.cross(slices[["rx", "ry", "rz"]].to_numpy(float), slices[["cx", "cy", "cz"]].to_numpy(float))
    length = np.sqrt((normals * normals).sum(axis=1))
    has_normal = length > 0
    largest = np.take_along_axis(normals, np.abs(normals).argmax(axis=1)[:, None], axis=1)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return normals * (np.sign(largest) / length)[:, None], has_normal


def _number_directions(normals: np.ndarray, has_normal: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Number the orientations, (slices,) int: slices of a series with the same rounded normal have the same number."""
    rounded = np.where(has_normal[:, None], normals.round(_SAME_DIRECTION_DECIMALS) + 0.0, 2.0)
    keys = pd.DataFrame({"series": series} | {axis: rounded[:, column] for column, axis in enumerate(AXES)})
    return keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()


def _choose_representatives(
    slices: pd.DataFrame, normals: np.ndarray, has_normal: np.ndarray, series: np.ndarray, num_series: int
) -> np.ndarray:
    """Return for each series the slice that provides its normal, or -1."""
    chosen = np.full(num_series, -1)
    rows = np.flatnonzero(has_normal)
    chosen[series[rows]] = rows  # any slice will do if all normals of a series are identical
    distinct = pd.DataFrame({"series": series[rows]} | dict(zip(AXES, normals[rows].T, strict=True))).drop_duplicates()
    several = np.bincount(distinct["series"], minlength=num_series) > 1
    rows = rows[several[series[rows]]]
    directions = _number_directions(normals[rows], has_normal[rows], series[rows])
    votes = np.bincount(directions)[directions]
    uids = pd.factorize(slices["sop_instance_uid"].iloc[rows], sort=True)[0]
    best_first = np.lexsort((slices["frame"].to_numpy()[rows], uids, -votes, series[rows]))
    first_series, first = np.unique(series[rows][best_first], return_index=True)
    chosen[first_series] = rows[best_first][first]
    return chosen


def _ends(z: np.ndarray, series: np.ndarray, num_series: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest z of each series; inf and -inf if none is known."""
    low, high = np.full(num_series, np.inf), np.full(num_series, -np.inf)
    placed = ~np.isnan(z)
    np.minimum.at(low, series[placed], z[placed])
    np.maximum.at(high, series[placed], z[placed])
    return low, high


def _spread(z: np.ndarray, series: np.ndarray, num_series: int) -> np.ndarray:
    """Return whether the slices of each series have more than one position, (series,) bool."""
    low, high = _ends(z, series, num_series)
    return high - low > SAME_POSITION_MM


def _normalise(z: np.ndarray, series: np.ndarray, num_series: int) -> np.ndarray:
    low, high = _ends(z, series, num_series)
    placed = ~np.isnan(z)
    span = high - low
    normalised = np.full(len(z), 0.5)
    spread = placed & (span > SAME_POSITION_MM)[series]
    normalised[spread] = (z - low[series])[spread] / span[series][spread]
    return normalised

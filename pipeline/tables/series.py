"""Place slices along the patient's axis: z_mm, z_norm and the facts of each series' geometry."""

import numpy as np
import pandas as pd

AXES = ("x", "y", "z")
# A UID is of one series by the standard; copies and de-identification give several studies the same one.
SERIES_KEY = ("patient_id", "study_instance_uid", "series_instance_uid")
# Normals that differ by less are one orientation: scanners write direction cosines with 4 to 7 digits.
_SAME_DIRECTION_DECIMALS = 3
# Below this, positions are one position: scanners write them to 0.001 mm or better.
SAME_POSITION_MM = 0.001
# The usual spacing on one side of a spacing is the median of so many next to it: one odd neighbour decides nothing.
_USUAL_OF = 3
# Missing one of equidistant slices doubles a spacing; scanners that space unevenly differ by less from step to step.
_GAP_FACTOR = 1.5


def place_slices(slices: pd.DataFrame) -> pd.DataFrame:
    """Place every slice within its series; the result depends on the set of slices alone, not on their order.

    A series is placed by the first of these that all its slices have, or else by that which most of them have, in
    which case the others are placed nowhere: the position along the normal, SliceLocation, InstanceNumber. Positions
    that are all one are passed over where the SliceLocations of the series differ. For positions a series has one
    normal: that of the orientation most of its slices have, of equally many that with the smallest SOP Instance UID;
    its largest component is made positive. A series without any orientation counts as axial.

    Args:
        slices: one line a slice with patient_id, study_instance_uid, series_instance_uid, sop_instance_uid, frame;
            position px, py, pz (mm); orientation rx, ry, rz, cx, cy, cz (direction cosines of row and column);
            slice_location (mm); instance_number; NaN where absent.

    Returns:
        z_mm: float64, mm; NaN where only the order is known or not even that.
        z_norm: float64 in [0, 1], (z - min) / (max - min) within the series; 0.5 where there is one position.
        z_from: "position", "slice_location", "instance_number" or "none".

    Source: DICOM PS3.3 C.7.6.2.1.1 (ImagePositionPatient, ImageOrientationPatient).
    """
    series, num_series = _number_series(slices)
    along = _project(slices, series, num_series)
    steps = np.stack(
        [along, slices["slice_location"].to_numpy(float), slices["instance_number"].to_numpy(float)]
    )  # (3, slices)
    known = ~np.isnan(steps)
    counts = np.stack([np.bincount(series, weights=row, minlength=num_series) for row in known])  # (3, series)
    stuck = ~_spread(steps[0], series, num_series) & _spread(steps[1], series, num_series)
    counts[0, stuck] = 0
    step = counts.argmax(axis=0)  # the first of the largest
    chosen = step[series]
    z = np.take_along_axis(steps, chosen[None], axis=0)[0]
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
    """Describe the geometry of every series, for the report.

    Args:
        slices: as for `place_slices`.

    Returns:
        one line a series, sorted by and indexed with `SERIES_KEY`: slices; z_from, of most slices;
        spacing_median_mm, spacing_min_mm, spacing_max_mm between neighbouring positions, NaN without two; uneven
        (spacings differ by more than 0.1 mm); gaps (spacings above 1.5 x the usual spacing before and after them, each
        the median of up to three: a change of spacing is no gap); repeated (slices at a position that another one has
        already); tilt_degrees between the normal and the body's axis, NaN without orientations; orientations (how
        many: above 1 is a mixed series).
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
    apart = pd.DataFrame({"series": series, "mm": steps.to_numpy()})[~same].dropna()
    grouped = apart.groupby("series")["mm"]
    every = pd.RangeIndex(num_series)
    median, low, high = (found.reindex(every).to_numpy() for found in (grouped.median(), grouped.min(), grouped.max()))
    return {
        "spacing_median_mm": median,
        "spacing_min_mm": low,
        "spacing_max_mm": high,
        "uneven": high - low > 0.1,
        "gaps": np.bincount(apart["series"][_are_gaps(apart)], minlength=num_series),
        "repeated": np.bincount(series[same], minlength=num_series),
    }


def _are_gaps(apart: pd.DataFrame) -> np.ndarray:
    """Tell which spacings are wider than what is usual on both sides of them; an end has one side."""
    grouped = apart.groupby("series")["mm"]
    steps = range(1, _USUAL_OF + 1)
    before, after = (
        pd.concat([grouped.shift(side * step) for step in steps], axis=1).median(axis=1) for side in (1, -1)
    )
    return (apart["mm"] > _GAP_FACTOR * np.fmax(before, after)).to_numpy()


def _number_series(slices: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Number the series of every slice in the order of patient, study and UID."""
    every = np.zeros(len(slices), np.int64)
    for column in SERIES_KEY:
        codes, values = pd.factorize(slices[column], sort=True)
        every = np.unique(every * max(len(values), 1) + codes, return_inverse=True)[1]
    return every, int(every.max(initial=-1)) + 1


def count_shared_uids(slices: pd.DataFrame) -> int:
    """How many Series Instance UIDs occur in more than one study, where each is a series of its own."""
    series = slices[list(SERIES_KEY)].drop_duplicates()
    return int((series["series_instance_uid"].value_counts() > 1).sum())


def _project(slices: pd.DataFrame, series: np.ndarray, num_series: int) -> np.ndarray:
    """Project every position on the normal of its series, mm; NaN without position."""
    normals, has_normal = _normals(slices)
    representative = _choose_representatives(slices, normals, has_normal, series, num_series)
    normal = np.where((representative >= 0)[:, None], normals[representative], (0.0, 0.0, 1.0))
    of_series = normal[series]
    positions = slices[["px", "py", "pz"]].to_numpy(float)
    # Written out: a matrix product may add in another order on another machine or for another number of slices.
    along = positions[:, 0] * of_series[:, 0] + positions[:, 1] * of_series[:, 1] + positions[:, 2] * of_series[:, 2]
    return along


def _normals(slices: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (slices, 3) unit normals, the largest component positive, and (slices,) which have one."""
    normals = np.cross(slices[["rx", "ry", "rz"]].to_numpy(float), slices[["cx", "cy", "cz"]].to_numpy(float))
    length = np.sqrt((normals * normals).sum(axis=1))
    has_normal = length > 0
    largest = np.take_along_axis(normals, np.abs(normals).argmax(axis=1)[:, None], axis=1)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return normals * (np.sign(largest) / length)[:, None], has_normal


def _number_directions(normals: np.ndarray, has_normal: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Number the orientations: slices of one series with the same rounded normal have the same number."""
    rounded = np.where(has_normal[:, None], normals.round(_SAME_DIRECTION_DECIMALS) + 0.0, 2.0)
    keys = pd.DataFrame({"series": series} | {axis: rounded[:, column] for column, axis in enumerate(AXES)})
    return keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()


def _choose_representatives(
    slices: pd.DataFrame, normals: np.ndarray, has_normal: np.ndarray, series: np.ndarray, num_series: int
) -> np.ndarray:
    """Return for each series the slice whose normal stands for it, or -1."""
    chosen = np.full(num_series, -1)
    rows = np.flatnonzero(has_normal)
    chosen[series[rows]] = rows  # whichever, where all normals of a series are the same to the bit
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
    """Return the smallest and the largest z of every series; inf and -inf where none is known."""
    low, high = np.full(num_series, np.inf), np.full(num_series, -np.inf)
    placed = ~np.isnan(z)
    np.minimum.at(low, series[placed], z[placed])
    np.maximum.at(high, series[placed], z[placed])
    return low, high


def _spread(z: np.ndarray, series: np.ndarray, num_series: int) -> np.ndarray:
    """Whether the slices of a series lie at more than one place, (series,)."""
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

"""Positions of slices in their series, z_mm and z_norm, and the geometry of series."""

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tables.series import count_shared_uids, place_slices, series_facts

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
COLUMNS = ("px", "py", "pz", "rx", "ry", "rz", "cx", "cy", "cz")


def tilted(degrees: float) -> tuple[float, ...]:
    angle = np.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(-np.sin(angle)))


def one_slice(
    uid: str, position: Any = None, orientation: Any = AXIAL, series: str = "S", **more: Any
) -> dict[str, Any]:
    geometry = (*(position or (np.nan,) * 3), *(orientation or (np.nan,) * 6))
    absent = {"slice_location": np.nan, "instance_number": np.nan, "frame": 0}
    return (
        {"patient_id": "P", "study_instance_uid": "T", "series_instance_uid": series, "sop_instance_uid": uid}
        | dict(zip(COLUMNS, geometry, strict=True))
        | absent
        | more
    )


def along(z: list[float], **more: Any) -> pd.DataFrame:
    return pd.DataFrame([one_slice(f"{number:03}", (0.0, 0.0, place), **more) for number, place in enumerate(z)])


def brute_force(slices: pd.DataFrame) -> list[float]:
    """Return z_norm of a series with one orientation, computed slice by slice."""
    rows = slices.to_dict("records")
    normal = np.cross([rows[0][axis] for axis in ("rx", "ry", "rz")], [rows[0][axis] for axis in ("cx", "cy", "cz")])
    if normal[np.argmax(np.abs(normal))] < 0:
        normal = -normal
    z = [float(np.dot(normal, [row["px"], row["py"], row["pz"]])) for row in rows]
    return [(value - min(z)) / (max(z) - min(z)) if max(z) > min(z) else 0.5 for value in z]


def test_uneven_spacing_keeps_its_proportions() -> None:
    placed = place_slices(along([10, 0, 4, 5, 30]))
    np.testing.assert_allclose(placed["z_norm"], [1 / 3, 0, 4 / 30, 5 / 30, 1])
    np.testing.assert_allclose(placed["z_mm"], [10, 0, 4, 5, 30])
    assert set(placed["z_from"]) == {"position"}


@given(
    degrees=st.floats(-30, 30),
    z=st.lists(st.floats(-500, 500).map(lambda value: round(value, 3)), min_size=1, max_size=12),
    flip=st.booleans(),
)
def test_tilted_series_equal_brute_force(degrees: float, z: list[float], flip: bool) -> None:
    orientation = tilted(degrees)
    if flip:  # the image is mirrored, but not the patient
        orientation = tuple(-value for value in orientation[:3]) + orientation[3:]
    slices = along(z, orientation=orientation)
    placed = place_slices(slices)
    if max(z) - min(z) > 0.01 or len(set(z)) == 1:
        np.testing.assert_allclose(placed["z_norm"], brute_force(slices), atol=1e-6)
    assert ((placed["z_norm"] >= 0) & (placed["z_norm"] <= 1)).all()
    order = np.argsort(z, kind="stable")
    assert (np.diff(placed["z_norm"].to_numpy()[order]) >= 0).all()  # ascending towards the head


def test_tilt_is_projected_on_the_normal() -> None:
    orientation = tilted(18.5)
    slices = along([0, 10], orientation=orientation)
    assert np.diff(place_slices(slices)["z_mm"])[0] == pytest.approx(10 * np.cos(np.radians(18.5)))


@pytest.mark.parametrize("z", [[7.0], [7.0, 7.0, 7.0], [7.0, 7.0000001]])
def test_z_norm_is_half_for_a_single_position(z: list[float]) -> None:
    assert (place_slices(along(z))["z_norm"] == 0.5).all()


def test_slice_location_and_instance_number_are_fallbacks() -> None:
    def placed(**absent: Any) -> pd.DataFrame:
        rows = [
            one_slice(
                str(number),
                **{"position": (0, 0, 2.0 * number), "slice_location": 3.0 * number, "instance_number": 9 - number}
                | absent,
            )
            for number in range(4)
        ]
        return place_slices(pd.DataFrame(rows))

    assert set(placed()["z_from"]) == {"position"}
    assert set(placed(orientation=None)["z_from"]) == {"position"}
    np.testing.assert_allclose(placed(orientation=None, slice_location=-1.0)["z_mm"], [0, 2, 4, 6])
    for absent in ({"position": None}, {"position": (1, 2, 3)}):
        by_location = placed(**absent)
        assert set(by_location["z_from"]) == {"slice_location"}
        np.testing.assert_allclose(by_location["z_mm"], [0, 3, 6, 9])
    by_number = placed(position=None, slice_location=np.nan)
    assert set(by_number["z_from"]) == {"instance_number"}
    assert by_number["z_mm"].isna().all()
    np.testing.assert_allclose(by_number["z_norm"], [1, 2 / 3, 1 / 3, 0])
    nothing = placed(position=None, slice_location=np.nan, instance_number=np.nan)
    assert set(nothing["z_from"]) == {"none"}
    assert (nothing["z_norm"] == 0.5).all()


def test_a_slice_without_position_is_not_placed_unless_all_have_slice_locations() -> None:
    slices = along([0, 5, 10])
    slices.loc[1, ["px", "py", "pz"]] = np.nan
    placed = place_slices(slices)
    assert placed["z_from"].to_list() == ["position", "none", "position"]
    assert placed["z_norm"].to_list() == [0, 0.5, 1]
    slices["slice_location"] = [0.0, 2.0, 8.0]  # known for all slices, so it is used for all of them
    placed = place_slices(slices)
    assert set(placed["z_from"]) == {"slice_location"}
    np.testing.assert_allclose(placed["z_norm"], [0, 0.25, 1])


def test_identical_positions_are_ignored_only_if_slice_locations_differ() -> None:
    stuck = {"position": (0, 0, 7), "instance_number": 1}
    repeated = [one_slice(str(number), **stuck, slice_location=3) for number in range(4)]
    placed = place_slices(pd.DataFrame(repeated))
    assert set(placed["z_from"]) == {"position"}
    assert set(placed["z_norm"]) == {0.5}
    differing = [one_slice(str(number), **stuck, slice_location=-2.0 * number) for number in range(4)]
    placed = place_slices(pd.DataFrame(differing))
    assert set(placed["z_from"]) == {"slice_location"}
    np.testing.assert_allclose(placed["z_norm"], [1, 2 / 3, 1 / 3, 0])


def test_a_slice_without_orientation_has_that_of_its_series() -> None:
    slices = along([0.0, 4.0, 8.0])
    rows = [one_slice(str(number), (0, number, 3.0 * number), tilted(20)) for number in range(3)]
    complete = place_slices(pd.DataFrame(rows))
    rows[1] = one_slice("1", (0, 1, 3), None)
    np.testing.assert_array_equal(place_slices(pd.DataFrame(rows))["z_mm"], complete["z_mm"])
    np.testing.assert_array_equal(place_slices(slices.assign(rx=np.nan))["z_mm"], [0, 4, 8])


def test_the_most_frequent_orientation_determines_the_normal() -> None:
    flat = along([0, 10, 20])
    steep = along([5, 30], orientation=tilted(20))
    steep["sop_instance_uid"] = ["900", "901"]
    both = pd.concat([flat, steep], ignore_index=True)
    np.testing.assert_allclose(place_slices(both)["z_mm"], [0, 10, 20, 5, 30])
    # If there are equally many, the smallest SOP Instance UID decides.
    even = pd.concat([flat[:2], steep], ignore_index=True)
    np.testing.assert_allclose(place_slices(even)["z_mm"], [0, 10, 5, 30])


def awkward_slices(seed: int, count: int = 60) -> pd.DataFrame:
    """Return series with two tilts, repeated positions, missing values and noisy direction cosines."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        orientation = np.array(tilted(float(rng.choice([0, 18.5, 18.52])))) + rng.normal(0, 1e-7, 6)
        position = tuple(rng.choice(np.arange(0, 100, 2.5), 3).tolist()) if rng.random() > 0.1 else None
        location = float(rng.integers(9)) if rng.random() > 0.3 else np.nan
        more = {"slice_location": location, "instance_number": float(rng.integers(20))}
        rows.append(one_slice(f"{number:04}", position, tuple(orientation), f"S{rng.integers(5)}", **more))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_result_does_not_depend_on_order_or_other_series(seed: int) -> None:
    slices = awkward_slices(seed)
    placed = place_slices(slices)
    for shuffle in range(3):
        mixed = slices.sample(frac=1, random_state=shuffle)
        pd.testing.assert_frame_equal(place_slices(mixed).sort_index(), placed, check_exact=True)
    alone = pd.concat([place_slices(part) for _, part in slices.groupby("series_instance_uid")]).sort_index()
    pd.testing.assert_frame_equal(alone, placed, check_exact=True)
    renamed = slices.assign(series_instance_uid="Z" + slices["series_instance_uid"])
    pd.testing.assert_frame_equal(place_slices(renamed), placed, check_exact=True)


def test_frames_of_a_file_are_placed_separately() -> None:
    rows = [one_slice("1", (0, 0, z), frame=frame) for frame, z in enumerate([0.0, 4.0, 8.0], start=1)]
    np.testing.assert_allclose(place_slices(pd.DataFrame(rows))["z_norm"], [0, 0.5, 1])


def test_an_empty_table_gives_empty_tables() -> None:
    empty = along([0, 1])[:0]
    assert list(place_slices(empty).columns) == ["z_mm", "z_norm", "z_from"]
    assert len(series_facts(empty)) == 0


def test_facts_of_a_series() -> None:
    slices = pd.concat(
        [
            along([0, 5, 10, 15, 40, 40], series="gap"),
            along([0, 4, 8], series="even", orientation=tilted(15)),
            along([3], series="single"),
        ]
    ).reset_index(drop=True)
    lonely = pd.DataFrame([one_slice("x", None, None, "nowhere")])
    facts = series_facts(pd.concat([slices, lonely], ignore_index=True))
    facts = facts.droplevel(["patient_id", "study_instance_uid"])
    assert facts.index.to_list() == ["even", "gap", "nowhere", "single"]
    assert facts["slices"].to_list() == [3, 6, 1, 1]
    gap, even = facts.loc["gap"], facts.loc["even"]
    assert (gap["spacing_median_mm"], gap["spacing_min_mm"], gap["spacing_max_mm"]) == (5, 5, 25)
    assert (gap["uneven"], gap["gaps"], gap["repeated"], gap["orientations"]) == (True, 1, 1, 1)
    assert (even["uneven"], even["gaps"], even["repeated"]) == (False, 0, 0)
    assert even["tilt_degrees"] == pytest.approx(15)
    assert even["spacing_median_mm"] == pytest.approx(4 * np.cos(np.radians(15)))
    assert np.isnan(facts.loc["nowhere", "tilt_degrees"])
    assert np.isnan(facts.loc["single", "spacing_median_mm"])
    assert facts["z_from"].to_list() == ["position", "position", "none", "position"]
    mixed = series_facts(pd.concat([along([0, 5]), along([9], orientation=tilted(20))], ignore_index=True))
    assert mixed["orientations"].to_list() == [2]


@pytest.mark.parametrize(
    ("spacings", "gaps"),
    [
        ([5, 5, 5, 5], 0),
        ([5, 5, 10, 5], 1),
        ([5, 5, 15, 5, 5, 10, 5], 2),
        ([5, 5, 15, 20, 5, 5], 2),  # adjacent gaps
        ([10, 5, 5], 1),
        ([5, 5, 25], 1),
        ([5, 7, 5, 7, 5], 0),
        ([2.5, 2.5, 2.5, 2.5, 5, 5, 5, 5], 0),  # thinner slices at the skull base
        ([2.5, 2.5, 2.5, 5, 5, 10, 5, 5], 1),
        ([2.5, 2.5, 5, 2.5, 2.5, 5, 5, 5], 1),
        ([4.2, 4.2, 4.2, 1.1, 7.4, 7.4, 7.4], 0),  # as in head_ct_tilted
        ([5, 15], 1),
        ([5], 0),
        ([5, 5, 7.4, 5, 5], 0),  # just below and just above 1.5 times the usual spacing
        ([5, 5, 7.6, 5, 5], 1),
    ],
)
def test_gaps_are_wider_than_the_spacings_around_them(spacings: list[float], gaps: int) -> None:
    z = np.concatenate([[0], np.cumsum(spacings)]).tolist()
    others = [along([0, 5, 20], series="A"), along([0, 40], series="T")]  # whose spacings must not matter
    slices = pd.concat([others[0], along([*z, z[1]]), others[1]], ignore_index=True)
    for shuffled in (slices, slices.sample(frac=1, random_state=0), slices.assign(pz=-slices["pz"])):
        assert series_facts(shuffled)["gaps"].to_list() == [1, gaps, 0]


@pytest.mark.parametrize("shared", [{"patient_id": "Q"}, {"study_instance_uid": "U"}])
def test_a_uid_shared_by_two_studies_is_two_series(shared: dict[str, str]) -> None:
    one, other = along([0, 5, 10]), along([1000, 1002, 1004, 1006]).assign(**shared)
    both = pd.concat([one, other], ignore_index=True).sample(frac=1, random_state=0)
    assert place_slices(both)["z_norm"].sort_index().to_list() == pytest.approx([0, 0.5, 1, 0, 1 / 3, 2 / 3, 1])
    facts = series_facts(both)
    assert sorted(facts["slices"]) == [3, 4]
    assert facts.loc[("P", "T", "S"), "spacing_median_mm"] == 5
    assert (count_shared_uids(both), count_shared_uids(one)) == (1, 0)


def test_a_real_series_is_placed_according_to_its_description(test_data: Any) -> None:
    from pipeline.dicom.read import read_slices
    from pipeline.planning.catalog import Reading

    rows = []
    for path in sorted((test_data / "head_ct_tilted").glob("*.dcm")):
        (found,) = read_slices(path.read_bytes(), Reading(patient_ids="keep"), None)
        record = found.record
        rows.append(one_slice(record.sop_instance_uid, record.position, record.orientation))
    slices = pd.DataFrame(rows)
    placed, (facts,) = place_slices(slices), series_facts(slices).to_dict("records")
    assert placed["z_norm"].is_monotonic_increasing
    assert (placed["z_norm"].iloc[0], placed["z_norm"].iloc[-1]) == (0, 1)
    # According to the data's README, the table moved by 4.2 mm, then 7.4, with one step of 1.1; along the normal, steps
    # are shorter.
    steps = np.diff(placed["z_mm"]) / np.cos(np.radians(18.5))
    assert sorted(set(steps.round(1))) == [1.1, 4.2, 7.4]
    assert facts["tilt_degrees"] == pytest.approx(18.5, abs=0.01)
    assert (facts["slices"], facts["uneven"], facts["gaps"], facts["repeated"]) == (28, True, 0, 0)


def test_100_000_slices_are_placed_within_seconds() -> None:
    count = 100_000
    rng = np.random.default_rng(0)
    slices = pd.DataFrame({name: np.full(count, value) for name, value in zip(COLUMNS[3:], AXIAL, strict=True)})
    slices[["px", "py"]], slices["pz"] = 0.0, rng.integers(0, 60, count) * 2.5
    slices["patient_id"] = slices["study_instance_uid"] = "P"
    slices["series_instance_uid"] = [f"ID_{number:x}" for number in rng.integers(0, 3000, count)]
    slices["sop_instance_uid"] = [f"ID_{number:x}" for number in rng.permutation(count)]
    slices["frame"], slices["slice_location"], slices["instance_number"] = 0, np.nan, np.nan
    started = time.process_time()
    place_slices(slices)
    assert time.process_time() - started < 10

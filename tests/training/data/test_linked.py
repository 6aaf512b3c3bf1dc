"""Test that patients who share slices are joined, and that contradicting groups are left out and listed."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testkit.fake_cache import FakeCache, plant, relabel, write_cache
from testkit.tiny_run import HERE, settings, task
from training.data.cache import open_cache
from training.data.linked import LEFT_OUT, contradict, describe, join, link, read_linked, table_of
from training.data.pixels import same_pixels
from training.data.split import split_patients
from training.errors import RunError
from training.run.job import begin, evaluate
from training.run.runs import open_run
from training.run.streams import lines_of

SIZE = 32


@pytest.fixture
def fake(tmp_path: Path) -> FakeCache:
    return write_cache(tmp_path / "cache.zarr", patients=12, slices=5)


def test_equal_slices_of_one_patient_and_blank_slices_do_not_link_patients(fake: FakeCache) -> None:
    plant(fake, 4, fake.images[SIZE][3])
    for line in (7, 12, 22):
        plant(fake, line, np.zeros((3, SIZE, SIZE), np.uint8))
    assert same_pixels(open_cache(fake.path), SIZE) == []


def test_trivial_slices_do_not_link_patients(fake: FakeCache) -> None:
    air = np.zeros((3, SIZE, SIZE), np.uint8)
    air[:, 0, :10] = 99  # 10 of 1,024 pixels
    for line in (7, 12):
        plant(fake, line, air)
    assert same_pixels(open_cache(fake.path), SIZE) == []
    air[0, 0, 10] = 99  # 11, in one window
    for line in (7, 12):
        plant(fake, line, air)
    assert [group.tolist() for group in same_pixels(open_cache(fake.path), SIZE)] == [[7, 12]]


def test_equal_sums_of_different_pixels_do_not_link_patients(fake: FakeCache) -> None:
    plant(fake, 12, fake.images[SIZE][3][:, ::-1])
    assert same_pixels(open_cache(fake.path), SIZE) == []


def test_patients_are_joined_through_all_pairs(fake: FakeCache) -> None:
    for line, like in ((12, 3), (22, 13), (41, 31), (36, 31)):  # patients 2-0, 4-2, 8-6, 7-6
        plant(fake, line, fake.images[SIZE][like])
    links = link(open_cache(fake.path), SIZE)
    assert [group.tolist() for group in links.groups] == [[3, 12], [13, 22], [31, 36, 41]]
    units = dict(zip(fake.table["patient_id"], links.units, strict=True))
    assert [int(units[f"ID_{n:08x}"][-2:], 16) for n in range(12)] == [0, 1, 0, 3, 0, 5, 6, 6, 6, 9, 10, 11]


@given(st.lists(st.lists(st.integers(0, 19), min_size=2, max_size=4), max_size=12))
def test_units_are_the_connected_components(groups: list[list[int]]) -> None:
    patients = pd.Series([f"P{n:02d}" for n in range(20)])
    reach = np.eye(20, dtype=bool)
    for group in groups:
        reach[np.ix_(group, group)] = True
    for middle in range(20):  # Warshall's algorithm for the transitive closure, as an independent check
        reach |= np.outer(reach[:, middle], reach[middle])
    expected = [f"P{np.flatnonzero(line)[0]:02d}" for line in reach]
    assert list(join(patients, [np.array(group) for group in groups])) == expected


@given(st.integers(0, 1000), st.integers(0, 3), st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.5, 0.0)]))
def test_no_unit_is_in_two_subsets(seed: int, pairs: int, fractions: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"patient_id": np.repeat([f"P{n:02d}" for n in range(50)], 2), "any": rng.random(100) < 0.3})
    units = join(table["patient_id"], [rng.integers(0, 100, 2) for _ in range(8 * pairs)])
    subsets = pd.Series(split_patients(table, ("any",), fractions, seed=seed, units=units))
    assert (subsets.groupby(units).nunique() == 1).all()
    assert (subsets.groupby(table["patient_id"]).nunique() == 1).all()
    if not pairs:
        assert (subsets == split_patients(table, ("any",), fractions, seed=seed)).all()


def test_labels_on_both_sides_of_a_half_contradict() -> None:
    assert contradict(np.array([[0, 1], [1, 1]]))
    assert not contradict(np.array([[np.nan, 1], [1, 1]]))
    assert contradict(np.array([[0.4], [0.6]]))
    assert not contradict(np.array([[0.6], [0.9]]))


def test_a_run_joins_leaves_out_and_lists(fake: FakeCache, tmp_path: Path) -> None:
    plant(fake, 12, fake.images[SIZE][3])
    plant(fake, 22, fake.images[SIZE][33])
    relabel(fake, {(3, "any"): 0, (12, "any"): 1} | {(line, "any"): 1 for line in (22, 33)})
    for name in fake.table.columns[9:-1]:
        relabel(fake, {(line, name): 0 for line in (3, 12, 22, 33)})
    run, cache = begin(tmp_path / "run", fake.path, settings(), HERE)
    linked = read_linked(run.path / "linked.csv")
    assert linked["image_id"].tolist() == fake.table["image_id"].iloc[[3, 12, 22, 33]].tolist()
    assert linked["group"].tolist() == [1, 1, 2, 2]
    assert (linked["done"] == LEFT_OUT).tolist() == [True, True, False, False]
    assert linked["any"].tolist() == [0, 1, 1, 1]
    subsets = run.subsets(cache)
    assert subsets[3] == subsets[12]
    assert subsets[22] == subsets[33]
    kept = np.concatenate([lines_of(run, cache, subset) for subset in ("train", "validation", "test")])
    assert sorted(set(range(60)) - set(kept.tolist())) == [3, 12]
    again = open_run(run.path)
    (run.path / "linked.csv").write_text((run.path / "linked.csv").read_text().replace("left out", "left in"))
    with pytest.raises(RunError, match=r"linked.csv: is not the one that the run started with"):
        lines_of(again, cache, "test")


def test_a_split_edited_to_break_a_group_is_rejected(fake: FakeCache, tmp_path: Path) -> None:
    plant(fake, 12, fake.images[SIZE][3])
    run, cache = begin(tmp_path / "run", fake.path, settings(), HERE)
    split = pd.read_csv(run.split)
    split.loc[split["patient_id"] == "ID_00000000", "split"] = "train"
    split.loc[split["patient_id"] == "ID_00000002", "split"] = "test"
    original = run.split.read_bytes()
    split.to_csv(run.split, index=False)
    with pytest.raises(RunError, match="patients in different subsets share the same pixels"):
        evaluate(task(run, cache), "test", tta=False)
    run.split.write_bytes(original)  # the advice
    with pytest.raises(RunError, match="no weights yet"):
        evaluate(task(run, cache), "test", tta=False)


def test_a_large_unit_is_in_the_training_set_and_is_reported(fake: FakeCache, tmp_path: Path) -> None:
    for line in range(12, 50, 5):
        plant(fake, line, fake.images[SIZE][3])
    cache = open_cache(fake.path)
    links = link(cache, SIZE)
    subsets = split_patients(cache.table, cache.classes, seed=0, units=links.units)
    assert set(subsets[links.units == "ID_00000000"]) == {"train"}
    assert set(subsets) == {"train", "validation", "test"}
    words = describe(table_of(links, cache), 12)
    image = fake.table["image_id"].iloc[3]
    assert any(
        "9 of 12 patients (75 %) are joined into one unit" in line and f"{image} under 9" in line for line in words
    )


def test_the_model_card_and_report_count_them(fake: FakeCache, tmp_path: Path) -> None:
    from training.report.report import write_report

    plant(fake, 12, fake.images[SIZE][3])
    run, cache = begin(tmp_path / "run", fake.path, settings(), HERE)
    write_report(run.path, cache)
    for name in ("report.html", "model_card.md"):
        assert "groups of identical slices under several patients: 1 (linked.csv)" in (run.path / name).read_text()
    assert json.loads((run.path / "settings.json").read_text())["data"]["linked"]

"""Test that leakage, and differences between caches, are detected and reported."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.fake_cache import FakeCache, current, plant, recommit, write_cache
from training.data.cache import Cache, open_cache
from training.errors import RunError
from training.run.config import TrainConfig
from training.run.runs import NewRun, Run, create_run
from training.scores.content import content_of, differences, open_own_cache, read_content, write_content
from training.scores.external import BY_NAME, BY_SLICE, external_lines
from training.scores.leakage import check_leakage

SIZE = 32


@pytest.fixture
def fake(tmp_path: Path) -> FakeCache:
    return write_cache(tmp_path / "cache.zarr", patients=6, slices=5)


def split_of(cache: Cache) -> pd.DataFrame:
    patients = sorted(set(cache.table["patient_id"]))
    subsets = ["train", "validation", "test"] * 2
    return pd.DataFrame({"patient_id": patients, "split": subsets})


def test_a_split_without_leakage_passes(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    check_leakage(split_of(cache), cache, SIZE)


def test_same_pixels_in_two_subsets_are_named(fake: FakeCache) -> None:
    plant(fake, 12, fake.images[SIZE][3])
    cache = open_cache(fake.path)
    first, second = fake.table["image_id"].iloc[[3, 12]]
    with pytest.raises(RunError, match=r"split.csv: patients in different subsets share the same pixels") as error:
        check_leakage(split_of(cache), cache, SIZE)
    assert first in str(error.value)
    assert second in str(error.value)
    assert "train" in str(error.value)
    assert "\n" not in str(error.value)


def test_same_pixels_in_one_subset_are_not_leakage(fake: FakeCache) -> None:
    plant(fake, 17, fake.images[SIZE][3])  # patients 0 and 3 are both in training
    cache = open_cache(fake.path)
    check_leakage(split_of(cache), cache, SIZE)


def test_patient_in_two_subsets_is_named_with_slices(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    planted = {"patient_id": [cache.table["patient_id"].iloc[0]], "split": ["test"]}
    split = pd.concat([split_of(cache), pd.DataFrame(planted)])
    with pytest.raises(RunError, match="in two subsets") as error:
        check_leakage(split, cache, SIZE)
    for name in cache.table["image_id"].iloc[:5]:
        assert name in str(error.value)


def make_run(path: Path, cache: Cache) -> Run:
    subsets = np.repeat(["train", "validation", "test", "train", "validation", "test"], 5)
    mean_std = np.full(3, 0.2), np.full(3, 0.1)
    run = create_run(path, cache, NewRun(TrainConfig(size_px=SIZE), subsets, mean_std, {}))
    write_content(run.path, content_of(cache, SIZE))
    return run


def test_content_does_not_depend_on_the_order_of_rows(fake: FakeCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other.zarr", patients=6, slices=5, row_seed=9, rows_per_shard=4)
    assert list(other.table["row"]) != list(fake.table["row"])
    assert differences(*(content_of(open_cache(path), SIZE) for path in (fake.path, other.path))) == []


def test_content_reads_back(fake: FakeCache, tmp_path: Path) -> None:
    content = content_of(open_cache(fake.path), SIZE)
    write_content(tmp_path, content)
    for name, array in vars(read_content(tmp_path)).items():
        assert (array == getattr(content, name)).all()


def test_each_difference_is_reported(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    before = content_of(cache, SIZE)
    table = cache.table.copy()
    table.loc[3, "any"] = 1 - table.loc[3, "any"]
    assert differences(before, content_of(dataclasses.replace(cache, table=table), SIZE)) == [
        "1 slice with a different patient, series, position or label"
    ]
    fewer = dataclasses.replace(cache, table=cache.table.iloc[:-2], keys=cache.keys[:-2])
    assert differences(before, content_of(fewer, SIZE)) == ["2 slices gone"]
    assert differences(content_of(fewer, SIZE), before) == ["2 slices added"]
    plant(fake, 7, fake.images[SIZE][8])
    assert differences(before, content_of(cache, SIZE)) == ["1 slice with different pixels"]


def commit_again(path: Path) -> str:
    """Replace the commit of a cache by another with the same content, and return its id."""
    before = current(path)
    after = recommit(path, lambda commit: commit["attributes"].update(created="2026-02-02T00:00:00Z"))
    (path / "commits" / f"{before}.json").unlink()
    return after


def test_own_cache_may_have_another_commit_with_the_same_content(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    moved = write_cache(tmp_path / "moved.zarr", patients=6, slices=5, row_seed=9)
    commit = commit_again(moved.path)
    assert open_own_cache(run, moved.path).commit == commit


def test_own_cache_with_other_content_is_refused_with_the_difference(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    other = write_cache(tmp_path / "other.zarr", patients=6, slices=5)
    plant(other, 7, fake.images[SIZE][8])
    commit_again(other.path)
    with pytest.raises(RunError, match="1 slice with different pixels"):
        open_own_cache(run, other.path)


def test_external_set_leaves_out_patients_of_training_and_names_them(fake: FakeCache, tmp_path: Path) -> None:
    cache = open_cache(fake.path)
    lines, left_out = external_lines(make_run(tmp_path / "run", cache), cache)
    assert sorted(set(cache.table["patient_id"].iloc[lines])) == ["ID_00000002", "ID_00000005"]  # of the test set
    assert left_out["patient_id"].tolist() == [f"ID_0000000{n}" for n in (0, 1, 3, 4)]
    assert left_out["slices"].tolist() == [5] * 4
    assert set(left_out["reason"]) == {BY_NAME}


def renamed(cache: Cache) -> Cache:
    return dataclasses.replace(cache, table=cache.table.assign(patient_id="new " + cache.table["patient_id"]))


def test_external_set_is_every_slice_with_a_label(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    other = write_cache(tmp_path / "other.zarr", patients=4, slices=3, unlabelled=2, seed=5)
    lines, left_out = external_lines(run, renamed(open_cache(other.path)))
    assert list(lines) == list(range(2, 12))
    assert not len(left_out)


def test_external_set_leaves_out_the_runs_patients_under_another_name(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    with pytest.raises(RunError, match=r"nothing is left to score: each of its 6 .*; give a cache with other patients"):
        external_lines(run, renamed(open_cache(fake.path)))
    other = write_cache(tmp_path / "other.zarr", patients=4, slices=3, seed=5)
    plant(other, 4, fake.images[SIZE][8])
    lines, left_out = external_lines(run, renamed(open_cache(other.path)))
    assert list(lines) == [0, 1, 2, *range(6, 12)]  # all slices of the patient are left out
    assert left_out.to_numpy().tolist() == [["new ID_00000001", 3, other.table["image_id"].iloc[4], BY_SLICE]]


def test_external_set_may_have_blank_slices(fake: FakeCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other.zarr", patients=4, slices=3, seed=5)
    for of, line in ((fake, 2), (other, 4)):
        plant(of, line, np.zeros_like(fake.images[SIZE][8]))
    run = make_run(tmp_path / "run", open_cache(fake.path))
    assert len(external_lines(run, renamed(open_cache(other.path)))[0]) == 12

"""This file plants leakage and other content, and holds that both are found and named."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from testkit.fake_cache import FakeCache, write_cache
from training.data.cache import Cache, open_cache
from training.errors import RunError
from training.run.config import TrainConfig
from training.run.runs import Run, create_run
from training.scores.content import content_of, differences, open_own_cache, read_content, write_content
from training.scores.external import external_lines
from training.scores.leakage import check_leakage, same_pixels

SIZE = 32


@pytest.fixture
def fake(tmp_path: Path) -> FakeCache:
    return write_cache(tmp_path / "cache.zarr", patients=6, slices=5)


def split_of(cache: Cache) -> pd.DataFrame:
    patients = sorted(set(cache.table["patient_id"]))
    sides = ["train", "validation", "test"] * 2
    return pd.DataFrame({"patient_id": patients, "split": sides})


def plant(fake: FakeCache, to_line: int, image: np.ndarray) -> None:
    """Give a line other pixels, with their sums."""
    row = int(fake.table["row"].iloc[to_line])
    group = zarr.open_group(fake.path, mode="r+")
    images, sums = group["images/32-0badcafe"], group["sums/32-0badcafe"]
    images[row] = image
    wide = image.reshape(3, -1).astype(np.uint64)
    sums[row] = np.stack([wide.sum(-1), (wide**2).sum(-1)], axis=-1)


def test_clean_data_pass(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    check_leakage(split_of(cache), cache, SIZE)


def test_same_pixels_under_two_patients_are_named(fake: FakeCache) -> None:
    plant(fake, 12, fake.images[SIZE][3])
    cache = open_cache(fake.path)
    first, second = fake.table["image_id"].iloc[[3, 12]]
    with pytest.raises(RunError, match="same pixels under several patients") as error:
        check_leakage(split_of(cache), cache, SIZE)
    assert first in str(error.value)
    assert second in str(error.value)
    assert "train" in str(error.value)
    assert "\n" not in str(error.value)


def test_same_pixels_of_one_patient_are_no_leak(fake: FakeCache) -> None:
    plant(fake, 4, fake.images[SIZE][3])
    assert same_pixels(open_cache(fake.path), SIZE) == []


def test_blank_slices_are_left_aside(fake: FakeCache) -> None:
    for line in (2, 12, 22):
        plant(fake, line, np.zeros((3, SIZE, SIZE), np.uint8))
    assert same_pixels(open_cache(fake.path), SIZE) == []


def test_equal_sums_of_other_pixels_are_no_leak(fake: FakeCache) -> None:
    plant(fake, 12, fake.images[SIZE][3][:, ::-1])
    assert same_pixels(open_cache(fake.path), SIZE) == []


def test_three_patients_make_one_group(fake: FakeCache) -> None:
    for line in (12, 22):
        plant(fake, line, fake.images[SIZE][3])
    (group,) = same_pixels(open_cache(fake.path), SIZE)
    assert sorted(group) == [3, 12, 22]


def test_patient_on_two_sides_is_named_with_slices(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    planted = {"patient_id": [cache.table["patient_id"].iloc[0]], "split": ["test"]}
    split = pd.concat([split_of(cache), pd.DataFrame(planted)])
    with pytest.raises(RunError, match="on two sides") as error:
        check_leakage(split, cache, SIZE)
    for name in cache.table["image_id"].iloc[:5]:
        assert name in str(error.value)


def make_run(path: Path, cache: Cache) -> Run:
    sides = np.repeat(["train", "validation", "test", "train", "validation", "test"], 5)
    mean_std = np.full(3, 0.2), np.full(3, 0.1)
    run = create_run(path, TrainConfig(size_px=SIZE), cache, sides, mean_std, {})
    write_content(run.path, content_of(cache, SIZE))
    return run


def test_content_is_the_same_in_other_rows(fake: FakeCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other.zarr", patients=6, slices=5, row_seed=9, rows_per_shard=4)
    assert list(other.table["row"]) != list(fake.table["row"])
    assert differences(*(content_of(open_cache(path), SIZE) for path in (fake.path, other.path))) == []


def test_content_reads_back(fake: FakeCache, tmp_path: Path) -> None:
    content = content_of(open_cache(fake.path), SIZE)
    write_content(tmp_path, content)
    for name, array in vars(read_content(tmp_path)).items():
        assert (array == getattr(content, name)).all()


def test_each_difference_is_named(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    before = content_of(cache, SIZE)
    table = cache.table.copy()
    table.loc[3, "any"] = 1 - table.loc[3, "any"]
    assert differences(before, content_of(dataclasses.replace(cache, table=table), SIZE)) == [
        "1 slice with another patient, series, position or label"
    ]
    fewer = dataclasses.replace(cache, table=cache.table.iloc[:-2], keys=cache.keys[:-2])
    assert differences(before, content_of(fewer, SIZE)) == ["2 slices gone"]
    assert differences(content_of(fewer, SIZE), before) == ["2 slices added"]
    plant(fake, 7, fake.images[SIZE][8])
    assert differences(before, content_of(cache, SIZE)) == ["1 slice with other pixels"]


def commit_as(path: Path, commit: str) -> None:
    """Let a cache have another commit id only."""
    zarr.open_group(path, mode="r+").attrs["commit"] = commit
    shutil.rmtree(path / "commits")
    zarr.consolidate_metadata(path)


def test_own_cache_may_have_another_commit_with_the_same_content(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    moved = write_cache(tmp_path / "moved.zarr", patients=6, slices=5, row_seed=9)
    commit_as(moved.path, "1111111111111111")
    assert open_own_cache(run, moved.path).commit == "1111111111111111"


def test_own_cache_with_other_content_is_refused_with_the_difference(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    other = write_cache(tmp_path / "other.zarr", patients=6, slices=5)
    plant(other, 7, fake.images[SIZE][8])
    commit_as(other.path, "1111111111111111")
    with pytest.raises(RunError, match="1 slice with other pixels"):
        open_own_cache(run, other.path)


def test_external_set_refuses_patients_of_training_and_names_their_slices(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    with pytest.raises(RunError, match=r"4 of its patients were .*: ID_00000000, .*; with slices ID_") as raised:
        external_lines(run, open_cache(fake.path))
    assert fake.table["image_id"].iloc[0] in str(raised.value)


def renamed(cache: Cache) -> Cache:
    return dataclasses.replace(cache, table=cache.table.assign(patient_id="new " + cache.table["patient_id"]))


def test_external_set_is_all_that_has_a_label(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    other = write_cache(tmp_path / "other.zarr", patients=4, slices=3, unlabelled=2, seed=5)
    assert list(external_lines(run, renamed(open_cache(other.path)))) == list(range(2, 12))


def test_external_set_refuses_slices_of_the_run_under_another_name(fake: FakeCache, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", open_cache(fake.path))
    with pytest.raises(RunError, match="30 of its slices are in the run's cache"):
        external_lines(run, renamed(open_cache(fake.path)))
    other = write_cache(tmp_path / "other.zarr", patients=4, slices=3, seed=5)
    plant(other, 4, fake.images[SIZE][8])
    with pytest.raises(RunError, match=f"1 of its slices .*: {other.table['image_id'].iloc[4]};"):
        external_lines(run, renamed(open_cache(other.path)))


def test_external_set_may_have_blank_slices(fake: FakeCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other.zarr", patients=4, slices=3, seed=5)
    for of, line in ((fake, 2), (other, 4)):
        plant(of, line, np.zeros_like(fake.images[SIZE][8]))
    run = make_run(tmp_path / "run", open_cache(fake.path))
    assert len(external_lines(run, renamed(open_cache(other.path)))) == 12

"""Test that neighbours are found by position within the series, and depend only on the content."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.fake_cache import write_cache
from training.data.cache import Cache, open_cache, slice_keys
from training.data.neighbours import SAME_POSITION_MM, Context, choose_context, find_neighbours, order_series
from training.errors import CacheError, ConfigError

WINDOWS = ("brain", "subdural", "bone")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("neighbours") / "cache.zarr"
    return open_cache(write_cache(path, patients=6, slices=7, sizes=(16,), unlabelled=3).path)


def with_table(cache: Cache, table: pd.DataFrame) -> Cache:
    keys = slice_keys(table["sop_instance_uid"], table["frame"])
    return replace(cache, table=table.reset_index(drop=True), keys=keys, num_slices=len(table))


def by_hand(cache: Cache, slices: int) -> np.ndarray:
    """Apply the rule to one slice after another, with lists."""
    table, found = cache.table, []
    columns = ["patient_id", "study_instance_uid", "series_instance_uid"]
    for line, own in table.iterrows():
        same = [other for other, of in table.iterrows() if all(of[c] == own[c] for c in columns)]
        placed = [other for other in same if not np.isnan(table["z_mm"][other])]
        if np.isnan(own["z_mm"]):
            found.append([line] * (2 * slices + 1))
            continue
        standing: list[int] = []
        last = -1
        for other in sorted(placed, key=lambda o: (table["z_mm"][o], cache.keys[o])):
            if not standing or table["z_mm"][other] - table["z_mm"][last] > SAME_POSITION_MM:
                standing.append(other)
            last = other
        here = max(i for i, other in enumerate(standing) if table["z_mm"][other] <= own["z_mm"])
        stack = [standing[min(max(here + step, 0), len(standing) - 1)] for step in range(-slices, slices + 1)]
        found.append([line if other == standing[here] else other for other in stack])
    return np.array(found)


def disturbed(cache: Cache, seed: int) -> Cache:
    """Reorder lines, duplicate some positions, remove others, and give two studies the same series UID."""
    rng = np.random.default_rng(seed)
    table = cache.table.sample(frac=1, random_state=seed).reset_index(drop=True)
    z = table["z_mm"].to_numpy(copy=True)
    z[rng.random(len(z)) < 0.3] = -94.9
    z[rng.random(len(z)) < 0.2] = np.nan
    of_first = (table["patient_id"] == table["patient_id"][0]).to_numpy()
    study = table["study_instance_uid"].where(~of_first | (rng.random(len(z)) < 0.5), "another study")
    return with_table(cache, table.assign(z_mm=z, study_instance_uid=study))


@pytest.mark.parametrize("slices", [1, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neighbours_follow_the_rule(plain: Cache, slices: int, seed: int) -> None:
    cache = disturbed(plain, seed)
    assert np.array_equal(find_neighbours(cache, slices), by_hand(cache, slices))


def test_neighbours_depend_only_on_the_content(plain: Cache) -> None:
    cache = disturbed(plain, 3)
    turned = cache.table.iloc[::-1].assign(row=np.arange(len(cache.table)))
    other = with_table(cache, turned)
    assert np.array_equal(cache.keys[find_neighbours(cache, 2)][::-1], other.keys[find_neighbours(other, 2)])


def test_unlabelled_slices_are_neighbours_and_removed_slices_are_not(plain: Cache) -> None:
    assert find_neighbours(plain, 1)[3].tolist() == [2, 3, 4]
    assert plain.table["any"].isna()[2]
    left = with_table(plain, plain.table.drop(index=2))
    assert find_neighbours(left, 1)[2].tolist() == [1, 2, 3]
    assert left.table["z_mm"][1] < plain.table["z_mm"][2]


def test_past_the_ends_the_outermost_slice_is_repeated(plain: Cache) -> None:
    assert find_neighbours(plain, 2)[[0, 6]].tolist() == [[0, 0, 0, 1, 2], [4, 5, 6, 6, 6]]


def test_series_are_ordered_and_slices_without_position_are_left_out(plain: Cache) -> None:
    cache = disturbed(plain, 4)
    order = order_series(cache)
    assert sorted(order.lines.tolist()) == np.flatnonzero(cache.table["z_mm"].notna()).tolist()
    for begin, end in zip(order.starts[:-1], order.starts[1:], strict=True):
        of = cache.table.iloc[order.lines[begin:end]]
        assert of["series_instance_uid"].nunique() == of["study_instance_uid"].nunique() == 1
        assert of["z_mm"].is_monotonic_increasing
        assert np.array_equal(of["z_mm"], order.z_mm[begin:end])


def test_a_cache_without_positions_is_reported(plain: Cache) -> None:
    cache = with_table(plain, plain.table.assign(z_mm=np.nan))
    with pytest.raises(CacheError, match=r"no slice has a z_mm.*use a run without --context"):
        find_neighbours(cache, 1)


def test_channels_go_from_foot_to_head() -> None:
    assert Context(1, (0, 1, 2)).channels(3) == (0, 1, 2) * 3
    assert Context(2, (0,)).channels(3) == (0, 0, 0, 1, 2, 0, 0)


def test_context_windows_are_chosen_by_name() -> None:
    assert choose_context(0, "all", WINDOWS) is None
    assert choose_context(1, "all", WINDOWS) == Context(1, (0, 1, 2))
    assert choose_context(1, "bone, brain", WINDOWS) == Context(1, (0, 2))
    with pytest.raises(ConfigError, match=r"--context-windows brian: no window 'brian'; did you mean brain\?"):
        choose_context(1, "brian", WINDOWS)


def test_the_rule_holds_on_a_cache_read_from_disk(tmp_path: Path) -> None:
    """The same content in different rows has the same neighbours."""
    a, b = (open_cache(write_cache(tmp_path / f"{seed}.zarr", sizes=(16,), row_seed=seed).path) for seed in (0, 1))
    assert not np.array_equal(a.table["row"], b.table["row"])
    assert np.array_equal(find_neighbours(a, 1), find_neighbours(b, 1))

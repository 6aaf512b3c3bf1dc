"""Test that a cache is read as docs/cache_format.md specifies, and that every fault gives a one-line error."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.fake_cache import CLASSES, FakeCache, current, recommit, write_cache
from training.data.cache import Cache, open_cache
from training.data.stream import Stream
from training.errors import CacheError


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("cache") / "cache.zarr", sizes=(16, 24), unlabelled=3)


@pytest.fixture
def broken(fake: FakeCache, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fake.path, tmp_path / "cache.zarr"))


def message(call: Callable[[], object]) -> str:
    with pytest.raises(CacheError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_commit_is_read_completely(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    assert (cache.commit, cache.classes, cache.sizes, cache.num_slices) == (current(fake.path), CLASSES, (16, 24), 40)
    assert [(w.name, w.level_hu, w.width_hu) for w in cache.windows][2] == ("bone", 600.0, 2800.0)
    assert cache.class_weights.dtype == np.float32
    assert cache.class_weights.tolist() == [1, 1, 1, 1, 1, 2]
    assert cache.array(24).shape[1:] == (3, 24, 24)


def test_the_table_is_read_exactly(fake: FakeCache) -> None:
    table = open_cache(fake.path).table
    assert list(table.columns) == list(fake.table.columns)
    for column in ("row", "sop_instance_uid", "patient_id", "z_mm", "z_norm"):
        assert table[column].tolist() == fake.table[column].tolist()


def test_missing_labels_are_nan(fake: FakeCache) -> None:
    labels = open_cache(fake.path).labels()
    assert labels.dtype == np.float32
    assert np.isnan(labels[:3]).all()
    assert np.array_equal(labels[3:], fake.table[list(CLASSES)].iloc[3:].to_numpy(np.float32))


def test_floats_are_exact_and_may_be_missing(broken: Path) -> None:
    numbers = np.random.default_rng(0).normal(0, 100, 40)
    rewrite_table(broken, lambda table: table.assign(z_norm=[repr(float(z)) for z in numbers], z_mm=""))
    table = open_cache(broken).table
    assert table["z_norm"].tolist() == numbers.tolist()
    assert table["z_mm"].dtype == np.float64
    assert table["z_mm"].isna().all()


def test_identifiers_stay_text(broken: Path) -> None:
    names = ["NA", "null", "007", "1e5", ""] * 8
    rewrite_table(broken, lambda table: table.assign(patient_id=names))
    assert open_cache(broken).table["patient_id"].tolist() == names


def rewrite_table(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    (file,) = (path / "tables").iterdir()
    table = change(pd.read_csv(file, dtype=str, keep_default_na=False))
    text = table.to_csv(index=False, lineterminator="\n").encode()
    digest = hashlib.sha256(text).hexdigest()
    (path / "tables" / f"{digest}.csv").write_bytes(text)
    metadata = {"file": f"tables/{digest}.csv", "digest": digest}
    lines = {"metadata": metadata, "num_slices": len(table)}
    recommit(path, lambda commit: commit["attributes"].update(lines))


def test_keys_are_the_documented_hash(fake: FakeCache) -> None:
    cache = open_cache(fake.path)
    uid = fake.table["sop_instance_uid"][7]
    expected = hashlib.blake2b(f"{uid}\x1f0".encode(), digest_size=8).digest()
    assert int(cache.keys[7]) == int.from_bytes(expected, "little")
    assert len(np.unique(cache.keys)) == cache.num_slices


def test_an_older_commit_can_be_read_after_a_later_one(broken: Path) -> None:
    before = open_cache(broken)
    rewrite_table(broken, lambda table: table.head(10))
    assert open_cache(broken).num_slices == 10
    again = open_cache(broken, before.commit)
    assert again.table.equals(before.table)
    assert again.array(16) == before.array(16)


@pytest.mark.parametrize("size", [16, 24])
def test_mean_and_std_equal_those_of_all_pixels(fake: FakeCache, size: int) -> None:
    lines = np.array([5, 1, 30, 12])
    mean, std = open_cache(fake.path).mean_std(size, fake.table["row"].to_numpy()[lines])
    pixels = fake.images[size][lines].transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert mean == pytest.approx(pixels.mean(axis=1), rel=1e-12)
    assert std == pytest.approx(pixels.std(axis=1), rel=1e-12)


def test_sums_are_in_the_order_of_the_requested_rows(fake: FakeCache) -> None:
    lines = np.array([9, 2, 2, 17])
    sums = open_cache(fake.path).sums(16, fake.table["row"].to_numpy()[lines])
    pixels = fake.images[16][lines].astype(np.uint64).reshape(4, 3, -1)
    assert np.array_equal(sums, np.stack([pixels.sum(-1), (pixels**2).sum(-1)], -1))


def first_sum_shard(cache: Path) -> Path:
    return cache / "sums" / "16-0badcafe" / "c" / "0" / "0" / "0"


def test_missing_sums_are_not_read_as_black(broken: Path) -> None:
    cache = open_cache(broken)
    first_sum_shard(broken).unlink()
    assert "verify --repair" in message(lambda: cache.mean_std(16, cache.table["row"].to_numpy()))


def test_damaged_sums_are_detected(broken: Path) -> None:
    cache = open_cache(broken)
    content = bytearray(first_sum_shard(broken).read_bytes())
    content[11] ^= 4
    first_sum_shard(broken).write_bytes(content)
    assert "verify --repair" in message(lambda: cache.mean_std(16, cache.table["row"].to_numpy()))


def remove_root(path: Path) -> None:
    (path / "zarr.json").unlink()


def remove_root_and_records(path: Path) -> None:
    remove_root(path)
    (path / ".pipeline").rmdir()


def tear_root(path: Path) -> None:
    (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes()[:500])


def flip_table_bit(path: Path) -> None:
    (file,) = (path / "tables").iterdir()
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)


def remove_table(path: Path) -> None:
    shutil.rmtree(path / "tables")


def set_attribute(**values: object) -> Callable[[Path], None]:
    return lambda path: recommit(path, lambda commit: commit["attributes"].update(values))


FAULTS: list[tuple[Callable[[Path], object], tuple[str, ...]]] = [
    (shutil.rmtree, ("no cache here", "pipeline build")),
    (remove_root, ("not finished", "pipeline build")),
    (remove_root_and_records, ("not a cache",)),
    (tear_root, ("zarr.json", "verify --repair")),
    (set_attribute(format="other"), ("not a cache",)),
    (set_attribute(format_version=3), ("version 3", "upgrade")),
    (set_attribute(format_version="x"), ("format_version",)),
    (set_attribute(classes=3), ("damaged", "verify --repair")),
    (set_attribute(metadata={"file": "/etc/hostname", "digest": "0" * 64}), ("damaged", "/etc/hostname")),
    (set_attribute(metadata={"file": "../x", "digest": "../x"}), ("damaged", "../x")),
    (set_attribute(sizes={"16": "../16-0badcafe"}), ("damaged", "../16-0badcafe")),
    (set_attribute(sums={"16": "sums/16-0badcafe/.."}), ("damaged", "sums/16-0badcafe/..")),
    (set_attribute(cache="../x"), ("damaged", "../x")),
    (set_attribute(rows_per_shard=0), ("damaged", "not a count")),
    (set_attribute(num_slices=41), ("40 lines", "41")),
    (flip_table_bit, ("tables/", "digest", "verify --repair")),
    (remove_table, ("tables/", "verify --repair")),
]


@pytest.mark.parametrize("file", ["zarr.json", "commits"])
@pytest.mark.parametrize(("before", "after"), [('"weight": 2.0', '"weight": 3.0'), ('"train": 0.7', '"train": 0.3')])
def test_a_flipped_bit_in_root_or_commit_is_detected(broken: Path, file: str, before: str, after: str) -> None:
    """Flipping a bit of 2.0 or 0.7 gives different but valid JSON."""
    path = broken / file if file == "zarr.json" else broken / "commits" / f"{current(broken)}.json"
    content = path.read_text()
    assert sum((a ^ b).bit_count() for a, b in zip(before.encode(), after.encode(), strict=True)) <= 2
    path.write_text(content.replace(before, after, 1))
    assert path.read_text() != content
    assert "is damaged" in message(lambda: open_cache(broken))


def test_a_commit_lists_exactly_the_arrays_of_its_sizes(broken: Path) -> None:
    recommit(broken, lambda commit: commit["arrays"].update({"images/../x": {}}))
    with pytest.raises(CacheError, match="the arrays do not match the sizes"):
        open_cache(broken)


def test_an_untrusted_commit_cannot_read_files_elsewhere(broken: Path, tmp_path: Path) -> None:
    for commit in ("../../x", str(tmp_path / "x"), "", "..", "A" * 16):
        if commit:
            assert "has no commit" in message(lambda: open_cache(broken, commit))  # noqa: B023


@pytest.mark.parametrize("file", ["zarr.json", "commits/*", "tables/*", "images/16-*/c/0/0/0/0", "sums/16-*/c/0/0/0"])
@pytest.mark.parametrize("what", ["a terabyte", "a pipe", "a folder"])
def test_invalid_files_in_a_cache_give_one_line_errors(broken: Path, file: str, what: str) -> None:
    [path] = broken.glob(file)
    if what == "a terabyte":
        os.truncate(path, 1 << 40)
    else:
        path.unlink()
        path.mkdir() if what == "a folder" else os.mkfifo(path)

    def read() -> None:
        cache = open_cache(broken)
        cache.mean_std(16, cache.table["row"].to_numpy())
        list(Stream(cache, 16, np.arange(40), 8).epoch(0, 0))

    text = message(read)
    assert str(path.relative_to(broken)) in text
    assert len(text) < 1000


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_each_fault_is_a_one_line_error_with_a_remedy(
    broken: Path, fault: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    fault(broken)
    text = message(lambda: open_cache(broken))
    assert str(broken) in text
    assert [word for word in words if word not in text] == []


def test_other_columns_are_refused(broken: Path) -> None:
    rewrite_table(broken, lambda table: table.rename(columns={"frame": "frame_no"}))
    assert "columns" in message(lambda: open_cache(broken))


def test_unknown_commit_names_the_nearest(fake: FakeCache) -> None:
    assert f"did you mean {current(fake.path)}?" in message(
        lambda: open_cache(fake.path, current(fake.path)[:-1] + "x")
    )
    assert "pipeline info" in message(lambda: open_cache(fake.path, "zz"))


def test_the_error_for_a_missing_size_says_how_to_build_it(fake: FakeCache) -> None:
    text = message(lambda: open_cache(fake.path).array(380))
    assert "16, 24 px" in text
    assert "--size 380" in text


def test_the_error_for_missing_labels_says_how_to_add_them(tmp_path: Path) -> None:
    cache = open_cache(write_cache(tmp_path / "cache.zarr", classes=()).path)
    assert cache.class_weights.shape == (0,)
    assert "--labels" in message(cache.labels)


def change_array(cache: Path, change: Callable[[dict], object]) -> Cache:
    recommit(cache, lambda commit: change(commit["arrays"]["images/16-0badcafe"]))
    return open_cache(cache)


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.update(data_type="uint16"),
        lambda array: array["codecs"][0]["configuration"].update(index_location="start"),
        lambda array: array["codecs"][0]["configuration"].update(chunk_shape=[2, 3, 16, 16]),
        lambda array: array["codecs"][0]["configuration"]["codecs"].pop(),
        lambda array: array["codecs"].append({"name": "crc32c"}),
        lambda array: array.clear(),
    ],
)
def test_an_array_not_in_the_format_is_rejected(broken: Path, change: Callable[[dict], object]) -> None:
    cache = change_array(broken, change)
    assert "not stored as the cache format requires" in message(lambda: cache.array(16))

"""Only what has changed is processed again, measured in files opened, slices rendered and shards written."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from pipeline.planning import stages
from pipeline.source import files
from testkit.small import LONG_AGO_NS, Small, Work, counted, run, slice_bytes, write, write_slices

LATER_NS = LONG_AGO_NS + 10**9
UIDS = {f"1.2.3.0.{number}": number % 2 for number in range(40)}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Small:
    small = Small(tmp_path_factory.mktemp("original"), labels=dict(UIDS))
    write_slices(small.src, range(20))
    write(small.src / "notes.txt", b"not DICOM")
    small.build()
    return small


@pytest.fixture
def built(original, tmp_path) -> Small:
    """A cache of 20 slices and a text file, in 3 shards."""
    return original.copy(tmp_path)


def planned_and_built(small: Small, *more: object) -> Work:
    """Build, and check that the plan listed exactly the files that the build read and the shards that it wrote."""
    import json

    made = json.loads(small.plan("--json", *[m for m in more if m != "--prune"]).stdout)
    with counted() as work:
        small.build(*more)
    files = made["compared"] + [file for task in made["tasks"] for file in task["files"]]
    assert sorted(work.read) == sorted(files)
    shards = {f"{array}/c/{task['shard']}/0/0/0" for task in made["tasks"] for array in task["arrays"]}
    assert {str(Path(shard).relative_to(small.out)) for shard in work.shards} == shards
    assert len(work.shards) == len(shards)
    return work


def check_clean(small: Small, name: str = "clean") -> None:
    """Check that the content is that of a first build from the same source, and that nothing is damaged."""
    assert small.digest() == small.clean_digest(small.folder / name)
    small.verify()


def table(small: Small) -> pd.DataFrame:
    return pd.read_csv(small.out / "metadata.csv", index_col="sop_instance_uid")


def test_an_unchanged_source_opens_no_file_and_makes_no_commit(built):
    before = zarr.open_group(built.out, mode="r").attrs["commit"]
    with counted() as work:
        assert "nothing to do" in built.plan(code=0).stdout
        built.build()
    assert work == Work()
    assert zarr.open_group(built.out, mode="r").attrs["commit"] == before


def test_a_touched_file_is_read_once_and_not_converted(built):
    os.utime(built.src / "003.dcm", ns=(LATER_NS, LATER_NS))
    with counted() as work:
        built.build()
    assert work == Work(read=["003.dcm"])
    with counted() as work:
        built.build()
    assert work == Work(), "the new time was stored"
    built.verify()


def test_changed_classes_rewrite_only_the_table(built):
    built.weight = 5
    assert planned_and_built(built) == Work()
    assert zarr.open_group(built.out, mode="r").attrs["classes"][0] == {"name": "bleed", "weight": 5}
    check_clean(built)


def test_changed_labels_rewrite_only_the_table(built):
    built.labels = {uid: 1 - label for uid, label in UIDS.items()}
    assert planned_and_built(built) == Work()
    assert table(built).loc["1.2.3.0.1", "bleed"] == 0
    check_clean(built)


def test_only_an_added_file_is_converted(built):
    rows = table(built)["row"]
    write(built.src / "more" / "020.dcm", slice_bytes(20))
    work = planned_and_built(built)
    assert (work.read, work.rendered, len(work.shards)) == (["more/020.dcm"], 1, 1)
    assert table(built)["row"].drop("1.2.3.0.20").equals(rows), "the others keep their rows"
    check_clean(built)


@pytest.mark.parametrize("content", [slice_bytes(3, content=1), slice_bytes(3, content=1) + b"\0" * 8])
def test_a_changed_file_gets_a_new_row(built, content):
    before = table(built)["row"]
    write(built.src / "003.dcm", content, LATER_NS)
    work = planned_and_built(built)
    same_size = len(content) == len(slice_bytes(3))
    assert work.read == ["003.dcm"] * (1 + same_size), "one of the same size is read to compare it first"
    assert (work.rendered, len(work.shards)) == (1, 1)
    after = table(built)["row"]
    assert list(before[before != after].index) == ["1.2.3.0.3"]
    check_clean(built)


def test_a_renamed_file_is_read_once_and_keeps_its_row(built):
    before = table(built)["row"]
    (built.src / "003.dcm").rename(built.src / "moved.dcm")
    work = planned_and_built(built)
    assert work == Work(read=["moved.dcm"])
    assert table(built)["row"].equals(before)
    assert "it was 003.dcm then" in run("why", built.out, "moved.dcm").stdout
    check_clean(built)


def test_a_removed_file_needs_prune_and_its_series_is_updated(built):
    (built.src / "000.dcm").unlink()
    commit = zarr.open_group(built.out, mode="r").attrs["commit"]
    refused = built.build(code=1)
    assert "1 of the files it was built from" in refused.stderr
    assert "000.dcm" in refused.stderr
    assert zarr.open_group(built.out, mode="r").attrs["commit"] == commit
    assert planned_and_built(built, "--prune") == Work()
    assert table(built).loc["1.2.3.0.1", "z_norm"] == 0
    check_clean(built)


@pytest.mark.parametrize("change", [{"rescale": "identity"}, {"rows": 4}, {"level": 45}])
def test_a_removed_file_needs_prune_even_if_settings_have_changed(built, change):
    (built.src / "000.dcm").unlink()
    (built.src / "001.dcm").rename(built.src / "renamed.dcm")
    for name, value in change.items():
        setattr(built, name, value)
    assert "000.dcm" in built.build(code=1).stderr
    assert len(table(built)) == 20
    built.build("--prune")
    assert len(table(built)) == 19
    check_clean(built)


@pytest.mark.parametrize("change", [{"rescale": "identity"}, {"rows": 4}])
def test_a_renamed_file_needs_no_prune_if_all_files_are_read_again(built, change):
    (built.src / "001.dcm").rename(built.src / "renamed.dcm")
    for name, value in change.items():
        setattr(built, name, value)
    built.build()
    check_clean(built)


def test_a_changed_window_fills_a_new_array_and_leaves_the_old_one(built):
    old = zarr.open_group(built.out, mode="r")
    path = old.attrs["sizes"]["8"]
    pixels = old[path][:]
    built.level = 60
    work = planned_and_built(built)
    assert (sorted(set(work.read)), work.rendered, len(work.shards)) == (sorted(work.read), 20, 3)
    np.testing.assert_array_equal(zarr.open_array(built.out / path, mode="r")[: len(pixels)], pixels)
    check_clean(built)
    built.level = 40
    assert planned_and_built(built) == Work(), "the old array is still there"
    check_clean(built, "again")


def test_another_version_of_the_conversion_fills_a_new_array(built, monkeypatch):
    old = zarr.open_group(built.out, mode="r").attrs["sizes"]["8"]
    monkeypatch.setattr(stages, "RENDER_VERSION", stages.RENDER_VERSION + 1)
    work = planned_and_built(built)
    assert (work.rendered, len(work.shards)) == (20, 3)
    assert zarr.open_group(built.out, mode="r").attrs["sizes"]["8"] != old
    assert zarr.open_array(built.out / old, mode="r")[:20].any()
    check_clean(built)


def test_another_version_of_reading_converts_everything_again(built, monkeypatch):
    monkeypatch.setattr(stages, "READ_VERSION", stages.READ_VERSION + 1)
    work = planned_and_built(built)
    assert (len(work.read), work.rendered) == (21, 20)
    check_clean(built)


@pytest.mark.parametrize("version", ["SERIES_VERSION", "LABELS_VERSION"])
def test_another_version_of_the_table_rewrites_only_the_table(built, monkeypatch, version):
    monkeypatch.setattr(stages, version, getattr(stages, version) + 1)
    assert planned_and_built(built) == Work()
    check_clean(built)


def test_only_an_added_size_is_converted(built):
    built.sizes = (8, 12)
    work = planned_and_built(built)
    assert (work.rendered, len(work.shards)) == (20, 3)
    assert all("/images/12-" in shard for shard in work.shards)
    check_clean(built)
    built.sizes = (8,)
    assert planned_and_built(built, "--drop-size", 12) == Work()


def test_changed_reading_settings_convert_everything_again(built):
    built.rescale = "identity"
    work = planned_and_built(built)
    assert (len(work.read), work.rendered) == (21, 20)
    check_clean(built)


def test_check_hash_finds_a_change_that_the_time_does_not_show(built):
    write(built.src / "003.dcm", slice_bytes(3, content=1))
    with counted() as work:
        built.build()
    assert work == Work(), "same size, same time"
    with counted() as work:
        built.build("--check", "hash")
    assert (len(work.read), work.rendered) == (22, 1)
    check_clean(built)


def test_a_time_that_a_later_change_could_have_too_is_not_trusted(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    in_an_hour_ns = time.time_ns() + 3600 * 10**9
    os.utime(small.src / "000.dcm", ns=(in_an_hour_ns, in_an_hour_ns))
    small.build()
    with counted() as work:
        small.build()
    assert work.read == ["000.dcm"]


def test_an_unreadable_file_is_counted_and_tried_again(built, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 5000)
    write(built.src / "large.dcm", slice_bytes(30) + b"\0" * 5000)
    built.build(code=1)
    counts = dict(zarr.open_group(built.out, mode="r").attrs["counts"])
    assert (counts["files"], counts["failed"]) == (22, 1)
    assert "large.dcm,unreadable" in (built.out / "rejects.csv").read_text()
    with counted() as work:
        built.plan(code=0)
    assert work == Work(read=["large.dcm"])
    built.verify()
    monkeypatch.undo()
    built.build()
    assert zarr.open_group(built.out, mode="r").attrs["counts"]["failed"] == 0
    check_clean(built)


def test_a_file_that_returns_is_a_new_file(built):
    content = (built.src / "003.dcm").read_bytes()
    (built.src / "003.dcm").unlink()
    built.build("--prune")
    write(built.src / "003.dcm", content)
    assert planned_and_built(built).rendered == 1
    check_clean(built)


def test_another_compressor_in_the_catalog_does_not_apply_to_an_existing_array(built):
    catalog = built.folder / "catalog.yaml"
    write(built.src / "021.dcm", slice_bytes(21))
    options = built.options()
    catalog.write_text(catalog.read_text().replace("{rows_per_shard: 8}", "{rows_per_shard: 8, compression: zstd}"))
    run("build", *options, "--workers", 0)
    assert zarr.open_group(built.out, mode="r")[zarr.open_group(built.out, mode="r").attrs["sizes"]["8"]][:].any()
    check_clean(built)


def test_an_unchanged_source_imports_nothing_heavy(built):
    import subprocess
    import sys

    heavy = ("pandas", "numba", "pydicom", "dask", "distributed", "numcodecs", "zarr", "fsspec")
    code = f"""
import sys
from click.testing import CliRunner
from pipeline.cli.main import main
assert CliRunner().invoke(main, sys.argv[1:]).exit_code == 0
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, "build", *built.options()], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done

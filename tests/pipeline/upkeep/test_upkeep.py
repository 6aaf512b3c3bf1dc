"""`verify` finds and repairs damage, and `gc` removes only what is unused."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import zarr

from pipeline.cache.lock import lock
from testkit.small import LONG_AGO_NS, Small, flip, run, slice_bytes, write


def files_of(small: Small) -> list:
    return sorted(path for path in small.out.rglob("*") if path.is_file() and path.name != "lock")


# --- verify --------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_file_is_found_and_repaired(built):
    digest, rng = built.digest(), np.random.default_rng(0)
    for path in files_of(built):
        if not path.exists():  # the first commit was moved aside with a slice whose source file is gone
            continue
        flip(path, int(rng.integers(path.stat().st_size * 8)))
        found = built.verify(code=1)
        assert str(path.relative_to(built.out)) in found.stdout
        built.repair()
        assert built.digest() == digest
    built.verify()


def test_a_flipped_bit_loses_no_old_commit(built):
    """The first commit has slices whose source files are gone, so that only the record still describes them."""
    commits = sorted((built.out / "commits").iterdir())
    rng = np.random.default_rng(2)
    for record in built.out.glob(".pipeline/shards/*"):
        for place in (10, int(rng.integers(65 * 8, record.stat().st_size * 8))):
            flip(record, place)
            built.verify(code=1)
            built.repair()
    assert sorted((built.out / "commits").iterdir()) == commits
    built.verify()


@pytest.mark.parametrize("kind", ["images/*/c/*/0/0/0", "sums/*/c/*/0/0", ".pipeline/shards/*", "tables/*", "commits/*",
                                  "**/zarr.json", ".pipeline/ledgers/*", ".pipeline/spares/*", "*.csv"])  # fmt: skip
def test_a_missing_file_is_found_and_repaired(built, kind):
    digest = built.digest()
    for path in built.out.glob(kind):
        path.unlink()
        assert str(path.relative_to(built.out)) in built.verify(code=1).stdout
        built.repair()
        assert built.digest() == digest
    built.verify()


def test_many_damaged_files_are_repaired_at_once(built):
    digest, rng = built.digest(), np.random.default_rng(1)
    shards = [path for path in files_of(built) if path.parts[-5:-4] == ("c",) or path.parts[-4:-3] == ("c",)]
    for path in [*shards, *built.out.glob("*.csv"), *built.out.glob("tables/*"), *built.out.glob("**/zarr.json")]:
        flip(path, int(rng.integers(path.stat().st_size * 8)))
    built.verify(code=1)
    built.repair()
    assert built.digest() == digest
    built.verify()


def test_damaged_rows_are_reported_and_only_images_need_the_source(built):
    [shard, *_] = sorted(built.out.glob("images/12-*/c/0/0/0/0"))
    flip(shard, 8 * 20)
    found = built.verify(code=1)
    assert re.search(r"images/12-\w+/c/0/0/0/0: row \d+: checksum does not match", found.stdout)
    flip(built.out / "metadata.csv", 100)
    left = built.verify("--repair", code=1)
    assert "repaired: metadata.csv" in left.stdout
    assert "give --src" in left.stderr
    built.repair()


@pytest.mark.parametrize("fate", ["gone", "changed"])
def test_a_new_commit_leaves_out_a_slice_whose_source_is_lost(built, fate):
    commit = zarr.open_group(built.out, mode="r").attrs["commit"]
    table = pd.read_csv(built.out / "metadata.csv")
    row = int(table.set_index("sop_instance_uid").loc["1.2.3.0.0", "row"])
    for path in built.out.glob(f"images/*/c/{row // 8}/0/0/0"):
        path.unlink()
    (built.src / "000.dcm").unlink()
    if fate == "changed":
        write(built.src / "000.dcm", slice_bytes(0, content=7), LONG_AGO_NS + 10**9)
    done = built.repair()
    assert "lost: 000.dcm: slice 1.2.3.0.0: a new commit leaves it out" in done.stdout
    assert f"dropped: commit {commit}" in done.stdout
    built.verify()
    assert set(table["sop_instance_uid"]) - set(pd.read_csv(built.out / "metadata.csv")["sop_instance_uid"]) == {
        "1.2.3.0.0"
    }
    built.build("--prune")
    assert built.digest() == built.clean_digest(built.folder / "clean")
    built.verify()


def test_files_lost_with_their_record_are_left_out(built):
    for path in built.out.glob(".pipeline/shards/0.json"):
        path.unlink()
    gone = sorted(built.src.glob("0*.dcm"))[:4]
    for path in gone:
        path.unlink()
    built.repair()
    built.verify()
    built.build("--prune")
    assert built.digest() == built.clean_digest(built.folder / "clean")


def test_leftovers_are_reported_and_removed_but_never_a_file_of_the_user(built):
    partial = built.out / "images" / ".x.1234.partial"
    partial.write_bytes(b"half")
    note = built.out / "notes.txt"
    note.write_text("mine")
    told = built.verify()
    assert f"left over: {partial}" in told.stdout
    assert partial.exists()
    built.repair()
    assert not partial.exists()
    assert note.exists()


def test_a_cache_that_cannot_be_verified_is_one_line(tmp_path, built):
    assert "no such cache" in run("verify", tmp_path / "absent.zarr", code=1).stderr
    with lock(built.cache):
        assert re.search(r"process \d+ on \S+, since 20", built.verify(code=1).stderr)
    shutil.rmtree(built.out / "commits")
    shutil.rmtree(built.out / ".pipeline" / "spares")
    assert "build it again" in built.repair(code=1).stderr


# --- gc ------------------------------------------------------------------------------------------------------------


def test_gc_removes_only_what_no_kept_commit_uses(built):
    built.level = 60
    built.build()
    digest = built.digest()
    every = files_of(built)
    assert "nothing is unused" in run("gc", built.out).stdout, "no commit is 7 days old"
    told = run("gc", built.out, "--older-than", "0s").stdout
    assert "2 commits, 4 arrays" in told
    assert files_of(built) == every, "nothing goes without --yes"
    run("gc", built.out, "--older-than", "0s", "--yes")
    assert len(list((built.out / "commits").iterdir())) == 1
    assert len(list(built.out.glob("images/*-*"))) == 2
    assert built.digest() == digest
    built.verify()
    assert "nothing is unused" in run("gc", built.out, "--older-than", "0s").stdout
    built.build()
    assert built.digest() == digest
    built.level = 40
    built.build()
    assert built.digest() == built.clean_digest(built.folder / "clean"), "the removed array was converted again"
    built.verify()


def test_gc_removes_dead_shards(built):
    (built.src / "notes.txt").unlink()
    for path in built.src.glob("*.dcm"):
        write(path, path.read_bytes() + b"\0" * 8, LONG_AGO_NS + 10**10)
    built.build("--prune")
    before = json.loads(run("info", built.out, "--json").stdout)
    assert before["rows"]["dead_share"] > 0.4
    run("gc", built.out, "--older-than", "0s", "--yes")
    after = json.loads(run("info", built.out, "--json").stdout)
    assert after["rows"]["live"] == before["rows"]["live"] == 24
    assert after["rows"]["stored"] == 25, "the twin keeps its row"
    assert after["bytes"]["unused"] == 0
    built.verify()
    assert built.digest() == built.clean_digest(built.folder / "clean")


def test_gc_keeps_the_commit_that_a_run_reads(built):
    old = list((built.out / "commits").iterdir())
    built.build()
    run("gc", built.out, "--older-than", "1h", "--yes")
    assert sorted((built.out / "commits").iterdir()) == sorted(old)


def test_gc_refuses_a_bad_age(built):
    assert "give a number and a unit (s, m, h, d or w)" in run("gc", built.out, "--older-than", "week", code=2).stderr

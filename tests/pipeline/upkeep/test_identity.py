"""The current commit is never guessed, a repair loses nothing intact, and caches of older versions open."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import zarr

from pipeline.cache.files import canonical
from pipeline.cache.ledger import Entry, Ledger, ledger_of
from pipeline.upkeep.gc import replaced_at
from testkit.commits import commit_files, error_lines, head_of, identify
from testkit.small import Small, run, slice_bytes, write


@pytest.fixture
def small(two_commits: Small, tmp_path: Path) -> Small:
    return two_commits.copy(tmp_path / "copy")


# --- the current commit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rot", [b"", None, b"{}", b"\0" * 5000])
@pytest.mark.parametrize("also", [None, "head", "copied"])
def test_a_lost_root_is_restored_from_the_recorded_commit(small, rot, also):
    head, every = head_of(small), commit_files(small)
    root = small.out / "zarr.json"
    root.write_bytes(rot) if rot is not None else root.unlink()
    if also:
        (small.out / ".pipeline" / also).write_bytes(b"rot")
    assert "zarr.json" in small.verify(code=1).stdout
    small.repair()
    assert head_of(small) == head
    assert commit_files(small) == every
    small.verify()


def test_if_every_record_is_lost_the_user_chooses_the_commit(small):
    head, every = head_of(small), commit_files(small)
    [other] = set(every) - {head}
    for name in ("zarr.json", ".pipeline/head", ".pipeline/copied"):
        (small.out / name).write_bytes(b"")
    [line] = error_lines(small.repair(code=1).stderr)
    assert "which commit is the current one is lost" in line
    assert head in line
    assert other in line
    small.verify("--repair", "--head", other, "--src", small.src)
    assert head_of(small) == other
    aside = small.out / ".pipeline" / "aside" / "commits" / f"{head}.json"
    assert aside.exists(), "the other commit is intact and was moved aside"


def test_an_older_root_that_was_put_back_does_not_hide_the_newer_commit(small):
    before, head = (small.out / "zarr.json").read_bytes(), head_of(small)
    write(small.src / "new.dcm", slice_bytes(7))
    small.build()
    newest, every = head_of(small), commit_files(small)
    (small.out / "zarr.json").write_bytes(before)
    write(small.src / "newer.dcm", slice_bytes(8))
    assert "older than the commit recorded last" in error_lines(small.build(code=1).stderr)[0]
    small.repair()
    assert (head_of(small), commit_files(small)) == (newest, every)
    assert newest != head


def test_an_intact_commit_that_cannot_be_placed_is_moved_aside(small):
    head = head_of(small)
    [other] = set(commit_files(small)) - {head}
    stray = json.loads((small.out / "commits" / f"{other}.json").read_bytes())
    stray["attributes"]["dataset"] = "another"
    name = f"commits/{identify(stray)}.json"
    (small.out / name).write_bytes(canonical(stray))
    said = small.repair().stdout
    place = small.out / ".pipeline" / "aside" / name
    assert f"moved aside: {small.out / name} -> {place}" in said
    assert json.loads(place.read_bytes()) == stray
    small.verify()


def test_a_wrong_clock_does_not_make_a_commit_old():
    day, now = 86400.0, 1e9
    assert replaced_at([now - 1, now - 9 * day], now) == [now, now - 1]
    assert replaced_at([-day, now - 9 * day], now) == [now, now], "a time before that of the earlier commit"
    assert replaced_at([now + day, now - 9 * day], now) == [now, now], "a time in the future"
    assert replaced_at([now - 1, -day, now - 9 * day], now) == [now, now - 1, now - 1]
    assert replaced_at([now - 1, now - 2 * day, now - 9 * day], now) == [now, now - 1, now - 2 * day]


# --- lost files ----------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def garble(path: Path) -> None:
    path.write_bytes(b"\x00rot\xff" * 7)


def make_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)
    (path / "inside" / "file").write_bytes(b"mine")


def private_files(small: Small) -> Iterator[str]:
    """Yield one private file of each kind, relative to the cache; for commits, that of the current one."""
    head = head_of(small)
    of_head = (f"private/{head}.json", f"ledgers/{head}", f"spares/{head}.zip", "shards/0.json", "records/0.z")
    yield from (f".pipeline/{name}" for name in ("head", "copied", *of_head))
    yield next(str(path.relative_to(small.out)) for path in small.out.glob(".pipeline/rejects/*"))


@pytest.mark.parametrize("root_too", [False, True], ids=["alone", "with the root"])
@pytest.mark.parametrize("fate", [remove, garble, make_folder])
def test_a_lost_private_file_is_restored(small, fate, root_too):
    digest, head, every = small.digest(), head_of(small), commit_files(small)
    for name in private_files(small):
        fate(small.out / name)
        if root_too:
            fate(small.out / "zarr.json")
        assert name in small.verify(code=1).stdout
        small.repair()
        assert (small.digest(), head_of(small), commit_files(small)) == (digest, head, every)
    small.verify()


def test_a_folder_in_place_of_any_file_is_repaired(small):
    digest = small.digest()
    files = sorted(path for path in small.out.rglob("*") if path.is_file() and path.name not in ("lock", "publishing"))
    for path in files:
        if not path.exists():  # the older commit was moved aside with a slice whose source file is gone
            continue
        make_folder(path)
        assert f"{path.relative_to(small.out)}: is a folder" in small.verify(code=1).stdout
        small.repair()
        assert small.digest() == digest
    small.verify()


@pytest.mark.parametrize("name", [".pipeline/lock", "zarr.json", ".pipeline/pending.json"])
def test_a_folder_in_place_of_a_file_is_one_line_in_other_commands(small, name):
    (small.out / name).unlink(missing_ok=True)
    (small.out / name).mkdir()
    write(small.src / "new.dcm", slice_bytes(7))
    for command in (("build", *small.options(), "--workers", 0), ("gc", small.out, "--yes"), ("info", small.out)):
        result = run(*command, code=None)
        assert len(error_lines(result.stderr)) <= 1
        assert result.exit_code in (0, 1)


# --- names, and format version 1 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\0b.txt", "\0", "", chr(0xDCFF), chr(0xD800), "\uf7a0", "a\nb"])
def test_a_ledger_stores_any_name(name):
    ledger = ledger_of([Entry(path, 1, 2, "0" * 31 + "1", 0, 0, 1) for path in sorted({name, "z"})])
    assert Ledger.decode(ledger.encode()).paths == sorted({name, "z"})


def test_a_cache_of_format_version_1_opens_and_the_next_build_gives_it_an_identity(small):
    digest = small.digest()
    old = to_version_1(small)
    assert head_of(small) == old
    small.verify()
    assert small.digest() == digest
    advice = "has no identity; run the same pipeline build again"
    assert advice in run("publish", small.out, "memory://old", code=1).stderr
    assert "a commit gives it an identity" in small.plan().stdout
    small.build()
    small.verify()
    assert head_of(small) != old
    assert len(zarr.open_group(small.out, mode="r").attrs["cache"]) == 32
    assert small.digest() == digest
    assert "nothing to do" in small.plan(code=0).stdout
    run("publish", small.out, "memory://old")


def to_version_1(small: Small) -> str:
    """Rewrite the current commit as format version 1, without the commit before it; return its id."""
    run("gc", small.out, "--older-than", "0s", "--yes")
    [file] = (small.out / "commits").iterdir()
    private_file = small.out / ".pipeline" / "private" / file.name
    commit, private = json.loads(file.read_bytes()), json.loads(private_file.read_bytes())
    for key in ("cache", "sequence", "label_level"):
        del commit["attributes"][key]
    private["before"] = []
    del private["choices"]
    commit |= {"attributes": commit["attributes"] | {"format_version": 1}, "private": private}
    for path, node in commit["arrays"].items():
        node["attributes"] = {}
        (small.out / path / "zarr.json").write_bytes(canonical(node))
    name, ledger = identify(commit), small.out / ".pipeline" / "ledgers"
    root = json.loads((small.out / "zarr.json").read_bytes()) | {"attributes": commit["attributes"]}
    root["consolidated_metadata"]["metadata"] |= commit["arrays"]
    for folder in ("records", "spares", "private"):
        shutil.rmtree(small.out / ".pipeline" / folder)
    (ledger / file.stem).rename(ledger / name)
    (small.out / ".pipeline" / "head").unlink()
    (small.out / ".pipeline" / "copied").write_bytes(name.encode())
    file.unlink()
    (small.out / "commits" / f"{name}.json").write_bytes(canonical(commit))
    (small.out / "zarr.json").write_bytes(canonical(root))
    small.verify("--repair")  # writes the backup
    return name

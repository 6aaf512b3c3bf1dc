"""Messages about a cache, its lock, key and copies with advice: tests provoke each of them and follow its advice."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from pipeline.cache import head
from pipeline.cache.drafts import Drafts
from pipeline.cache.lock import lock
from testkit.advice import Case, by_hand
from testkit.advised_builds import Cases, again, build, built
from testkit.small import Small, counted, run, slice_bytes, write, write_slices

CASES = Cases()


# --- the folder of a cache -------------------------------------------------------------------------------------------


@CASES.add
def _a_cache_in_use(small: Small) -> Case:
    built(small)
    return Case(build(small), "is working on it; wait for it, or stop it", again=True, state=lambda: lock(small.cache))


@CASES.add
def _verifying_a_cache_in_use(small: Small) -> Case:
    built(small)
    verify = ["verify", small.out]
    return Case(verify, "is working on it; wait for it, or stop it", again=True, state=lambda: lock(small.cache))


@CASES.add
def _a_lock_that_is_a_folder(small: Small) -> Case:
    place = small.out / ".pipeline" / "lock"
    place.mkdir(parents=True)
    return Case(
        build(small), "is not a regular file; remove it and run the command again", by_hand(place.rmdir), again=True
    )


@CASES.add
def _a_store_of_another_program(small: Small) -> Case:
    write(small.out / "zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    advice = "not the root of an ich-cache cache, or is damaged; give another (--out)"
    return Case(build(small), advice, lambda m: [[*build(small), m[1], small.folder / "other"]])


@CASES.add
def _a_cache_of_a_newer_program(small: Small) -> Case:
    built(small)
    older = lambda: patch.object(head, "FORMAT_VERSION", 1)  # noqa: E731
    return Case(["info", small.out], "is newer than this program's 1; update ich-cache", again=True, state=older)


def _with_key(small: Small) -> tuple[list[Any], Path, Path]:
    """Return a build with a catalog that hashes patients, the right key and another one."""
    catalog, keys = small.folder / "hash.yaml", (small.folder / "right.key", small.folder / "other.key")
    catalog.write_text(Path(small.options()[5]).read_text("utf-8").replace("patient_ids: keep", ""), "utf-8")
    for key, digits in zip(keys, ("0f", "ab"), strict=True):
        write(key, digits.encode() * 32)
        key.chmod(0o600)
    return build(small, catalog=catalog), *keys


@CASES.add
def _another_patient_key(small: Small) -> Case:
    command, right, other = _with_key(small)
    run(*command, "--patient-key", right)
    advice = "another patient key; give that key with (--patient-key)"
    return Case([*command, "--patient-key", other], advice, lambda m: [[*command, m[1], right]])


@CASES.add
def _another_patient_key_on_purpose(small: Small) -> Case:
    command, right, other = _with_key(small)
    run(*command, "--patient-key", right)
    elsewhere = lambda m: [[*command, "--patient-key", other, m[1], small.folder / "new.zarr"]]  # noqa: E731
    return Case([*command, "--patient-key", other], "another patient key; .* or a new (--out)", elsewhere)


@CASES.add
def _a_missing_patient_key(small: Small) -> Case:
    command, right, _ = _with_key(small)
    lost = [*command, "--patient-key", small.folder / "no.key"]
    return Case(lost, "cannot be read .*; give (--patient-key) FILE", lambda m: [[*command, m[1], right]])


@CASES.add
def _a_record_that_needs_the_key(small: Small) -> Case:
    command, right, _ = _with_key(small)
    run(*command, "--patient-key", right)
    shutil.rmtree(small.out / ".pipeline" / "shards")
    for spare in (small.out / ".pipeline").glob("records*"):
        shutil.rmtree(spare)
    repair = ["verify", small.out, "--repair", "--src", small.src]
    return Case(repair, "give the cache's key with (--patient-key)", lambda m: [[*repair, m[1], right]])


# --- repair ----------------------------------------------------------------------------------------------------------


@CASES.add
def _a_repair_of_images(small: Small) -> Case:
    built(small)
    next(small.out.glob("images/*/c/0/0/0/0")).unlink()
    repair = ["verify", small.out, "--repair"]
    return Case(repair, "must be rebuilt from the DICOM files: give (--src)", lambda m: [[*repair, m[1], small.src]])


def _two_commits(small: Small) -> list[Path]:
    """Build two commits and return the files of the current one."""
    built(small)
    write_slices(small.src, range(3, 5))
    small.build()
    current = json.loads((small.out / "zarr.json").read_bytes())["attributes"]["commit"]
    return [path for path in small.out.rglob("*") if path.is_file() and current in path.name]


@CASES.add
def _a_lost_current_commit(small: Small) -> Case:
    for path in _two_commits(small):
        path.unlink()
    repair = ["verify", small.out, "--repair", "--src", small.src]
    advice = r"intact are (\w+) of .*; run: pipeline verify --repair (--head) COMMIT"
    return Case(repair, advice, lambda m: [[*repair, m[2], m[1]], ["info", small.out], build(small)])


@CASES.add
def _all_commits_lost(small: Small) -> Case:
    built(small)
    for folder in (small.out / "commits", small.out / ".pipeline" / "spares"):
        shutil.rmtree(folder)
    anew = again(small, out=small.folder / "new.zarr")
    return Case(["verify", small.out, "--repair"], "no other commit can be read; build it again with a new --out", anew)


@CASES.add
def _lost_tables(small: Small) -> Case:
    built(small)
    for path in [*small.out.glob("tables/*"), *small.out.glob(".pipeline/spares/*"), small.out / "metadata.csv"]:
        path.unlink()
    anew = again(small, out=small.folder / "new.zarr")
    advice = "the table of commit .* and its backup are lost; build it again with a new --out"
    return Case(["verify", small.out, "--repair", "--src", small.src], advice, anew)


def _interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def _interrupted(small: Small) -> None:
    with patch.object(Drafts, "publish", _interrupt):
        said = small.build(code=130)
    assert "interrupted; finished work is kept: run the same command to continue" in said.stderr


@CASES.add
def _an_interrupted_build(small: Small) -> Case:
    _interrupted(small)
    advice = "nothing has been committed yet; run the same `pipeline build` again to finish it"
    return Case(["info", small.out], advice, again(small), again=True)


def test_info_and_report_advise_to_run_an_interrupted_build_again(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    small.build()
    write(small.src / "new.dcm", slice_bytes(7))
    _interrupted(small)
    page = tmp_path / "r.html"
    assert "interrupted after 0 of 1 shards; run it again" in run("info", small.out).stdout
    run("report", small.out, "--out", page)
    assert "interrupted after 0 of 1 shards; run it again" in page.read_text("utf-8")
    small.build()
    assert "interrupted" not in run("info", small.out).stdout
    run("report", small.out, "--out", page)
    assert "interrupted" not in page.read_text("utf-8")


def test_the_report_says_how_to_add_labels(tmp_path: Path) -> None:
    small, page = Small(tmp_path), tmp_path / "r.html"
    write_slices(small.src, range(3))
    small.build()
    run("report", small.out, "--out", page)
    assert "To add labels, run the same build with --labels; no image is converted again." in page.read_text("utf-8")
    write(tmp_path / "l.csv", b"image_id,bleed,any\n1.2.3.0.0,1,1\n")
    with counted() as work:
        small.build("--labels", tmp_path / "l.csv")
    assert not work.rendered
    run("report", small.out, "--out", page)
    assert "To add labels" not in page.read_text("utf-8")


def test_gc_removes_unused_shards_with_the_suggested_option(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    small.build()
    small.level = 60
    small.build()
    named = run("gc", small.out, "--older-than", "0s").stdout
    found = re.search(r"unused: .*; remove it with (--yes)", named)
    assert found
    run("gc", small.out, "--older-than", "0s", found[1])
    assert "unused     0 bytes; `pipeline gc` removes it" in run("info", small.out).stdout


# --- invalid options -------------------------------------------------------------------------------------------------


class Wrong(NamedTuple):
    words: tuple[str, ...]
    advice: str
    right: tuple[str, ...]


WRONG = (
    Wrong(("--labels", "l.csv", "--no-labels"), "contradict each other: give one of them", ("--labels", "l.csv")),
    Wrong(("--scheduler", "x"), "--workers and --scheduler both say where tasks run: give one of them", ()),
    Wrong(("--max-rejects", "few"), r"give a count such as (10), or", ("--max-rejects", "10")),
    Wrong(("--max-rejects", "few%"), r"or a share such as (0\.5%)", ("--max-rejects", "0.5%")),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.words[0])
def test_invalid_options_are_corrected_as_advised(wrong: Wrong, tmp_path: Path) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    write(tmp_path / "l.csv", b"image_id,bleed,any\n1.2.3.0.0,1,1\n")
    words, right = ([str(tmp_path / w) if w == "l.csv" else w for w in given] for given in (wrong.words, wrong.right))
    assert re.search(wrong.advice, small.build(*words, code=2).stderr)
    small.build(*right)


@pytest.mark.parametrize("age", ["12h", "7d"])
def test_an_invalid_age_is_corrected_as_advised(age: str, tmp_path: Path) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    small.build()
    assert age in run("gc", small.out, "--older-than", "week", code=2).stderr
    run("gc", small.out, "--older-than", age)


# --- disks -----------------------------------------------------------------------------------------------------------


@CASES.add
def _a_full_disk(small: Small) -> Case:
    used = shutil.disk_usage(small.folder)
    full = lambda: patch.object(shutil, "disk_usage", lambda _: used._replace(free=0))  # noqa: E731
    return Case(build(small), "MB are free; make room, or give another --out", again=True, state=full)


@pytest.mark.parametrize("name", CASES)
def test_following_the_advice_succeeds(name: str, tmp_path: Path) -> None:
    CASES.follow(name, tmp_path)

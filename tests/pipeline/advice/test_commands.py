"""Messages of `pipeline` with advice: tests provoke each of them and follow its advice."""

import re
import shutil
from pathlib import Path

import pytest

from testkit.advice import Case
from testkit.advised_builds import Cases, advised, again, build, built
from testkit.small import Small, run, slice_bytes, write, write_slices

CASES = Cases()


@CASES.add
def _a_missing_cache(small: Small) -> Case:
    missing = ["info", small.out]
    return Case(missing, r"run: (pipeline build .*)", lambda m: [[*advised(m[1], small), "--workers", 0]], again=True)


@CASES.add
def _a_missing_source(small: Small) -> Case:
    return Case(build(small, src=small.folder / "no"), "give a folder of DICOM files", again(small))


@CASES.add
def _a_source_without_files(small: Small) -> Case:
    (small.folder / "no").mkdir()
    return Case(build(small, src=small.folder / "no"), "give a folder of DICOM files", again(small))


@CASES.add
def _no_source(small: Small) -> Case:
    return Case(build(small, src=None), "give (--src) DICOMS", lambda m: [[*build(small, src=None), m[1], small.src]])


@CASES.add
def _a_cache_inside_its_source(small: Small) -> Case:
    return Case(build(small, out=small.src / "c.zarr"), "--out lies inside.*give a folder outside", again(small))


@CASES.add
def _a_file_instead_of_a_cache(small: Small) -> Case:
    small.out.write_bytes(b"")
    return Case(build(small), "give another (--out)", lambda m: [[*build(small), m[1], small.folder / "other"]])


@CASES.add
def _another_folder_instead_of_a_cache(small: Small) -> Case:
    write(small.out / "notes.txt", b"")
    return Case(build(small), "new folder for (--out)", lambda m: [[*build(small), m[1], small.folder / "other"]])


@CASES.add
def _dropping_the_last_size(small: Small) -> Case:
    built(small)
    drop = build(small, "--drop-size", 8)
    return Case(drop, "give (--size) for another one", lambda m: [[*drop, m[1], 12]])


@CASES.add
def _a_missing_label_file(small: Small) -> Case:
    write(small.folder / "l.csv", b"image_id,bleed,any\n1.2.3.0.0,1,1\n")
    lost = build(small, labels=small.folder / "no.csv")
    return Case(lost, "give (--labels) FILE", lambda m: [[*lost, m[1], small.folder / "l.csv"]])


@CASES.add
def _a_missing_catalog(small: Small) -> Case:
    lost = build(small, catalog=small.folder / "no.yaml")
    return Case(lost, "give (--catalog) FILE", lambda m: [[*lost, m[1], small.folder / "catalog.yaml"]])


@CASES.add
def _an_entry_of_another_catalog(small: Small) -> Case:
    text = Path(small.options()[5]).read_text("utf-8")
    other = small.folder / "other.yaml"
    other.write_text(text.replace("generic:", "mine:"), "utf-8")
    run(*build(small, catalog=other, dataset="mine"))
    return Case(build(small), "give the (--catalog) that has it", lambda m: [[*build(small), m[1], other]])


@CASES.add
def _a_report_that_cannot_be_written(small: Small) -> Case:
    built(small)
    wrong, right = small.src, small.folder / "r.html"
    return Case(
        ["report", small.out, "--out", wrong], "give another (--out)", lambda m: [["report", small.out, m[1], right]]
    )


@CASES.add
def _an_address_with_other_files(small: Small) -> Case:
    built(small)
    write(small.folder / "there" / "notes.txt", b"")
    wrong, right = (f"file://{small.folder}/{name}" for name in ("there", "empty"))
    return Case(["publish", small.out, wrong], "give an empty address", lambda _: [["publish", small.out, right]])


@CASES.add
def _an_address_of_another_cache(small: Small) -> Case:
    built(small)
    other, address = small.folder / "other.zarr", f"file://{small.folder}/there"
    run(*build(small, out=other))
    run("publish", other, address)
    return Case(
        ["publish", small.out, address], "give another address", lambda _: [["publish", small.out, address + "2"]]
    )


@CASES.add
def _publishing_before_a_commit(small: Small) -> Case:
    publish = ["publish", small.out, f"file://{small.folder}/there"]
    return Case(publish, r"run: (pipeline build .*)", lambda m: [[*advised(m[1], small), "--workers", 0]], again=True)


@CASES.add
def _a_report_without_slices(small: Small) -> Case:
    built(small)
    shutil.rmtree(small.src)
    write(small.src / "notes.txt", b"no DICOM")
    small.build("--prune")

    def follow(found: re.Match[str]) -> list[list[object]]:
        write_slices(small.src, range(3))
        return [[*advised(found[1], small), "--workers", 0]]

    return Case(
        ["report", small.out, "--out", small.folder / "r.html"], r"run: (pipeline build .*)", follow, again=True
    )


@CASES.add
def _an_ambiguous_file_name(small: Small) -> Case:
    for folder in "ab":
        write(small.src / folder / "s.dcm", slice_bytes(5 + ord(folder)))
    built(small)
    return Case(["why", small.out, "s.dcm"], r"files match, such as (\S+) and", lambda m: [["why", small.out, m[1]]])


@CASES.add
def _a_file_that_was_not_built(small: Small) -> Case:
    built(small)
    write(small.src / "late.dcm", slice_bytes(9))

    def follow(found: re.Match[str]) -> list[list[object]]:
        assert "1 new" in run(found[1], *small.options(), code=2).stdout
        return [build(small)]

    return Case(["why", small.out, "late.dcm"], "run: pipeline (plan)", follow, again=True)


@CASES.add
def _more_failed_files_than_allowed(small: Small) -> Case:
    write(small.src / "cut.dcm", slice_bytes(9)[:-50])
    few = build(small, "--max-rejects", 0)
    return Case(few, "more than (--max-rejects); see .*rejects.csv", lambda m: [[*few, m[1], 1]])


def _parts(cache: Path) -> list[Path]:
    """Return the files of all kinds that commands read, except pixels."""
    own = cache / ".pipeline"
    folders = (cache / "tables", cache / "commits", own / "shards", own / "private", own / "ledgers")
    return [cache / "zarr.json", *(path for folder in folders for path in sorted(folder.iterdir()) if path.is_file())]


@pytest.mark.parametrize("name", CASES)
def test_following_the_advice_succeeds(name: str, tmp_path: Path) -> None:
    CASES.follow(name, tmp_path)


@pytest.mark.parametrize("command", ["report", "info"])
def test_the_command_in_a_message_about_damage_repairs_it(command: str, tmp_path: Path) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    small.build()
    words = [command, small.out, *(["--out", tmp_path / "r.html"] if command == "report" else [])]
    followed = 0
    for path in _parts(small.out):
        intact = path.read_bytes()
        path.write_bytes(intact[:20] + b"?" + intact[21:])
        refused = run(*words, code=None)
        if refused.exit_code:
            found = re.search(r"run: (pipeline verify) (--repair)|run: (pipeline verify \S+ --repair)", refused.stderr)
            assert found, refused.stderr
            followed += 1
        named = run("verify", small.out, code=1)
        said = re.search(r"run: (pipeline verify .*)", named.stderr)
        assert said, named.stderr
        run(*advised(said[1], small))
        run(*words)
        small.verify()
    assert followed

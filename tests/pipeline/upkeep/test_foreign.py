"""Links, pipes, files of other programs and a missing private folder: one line of error, and no harm."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from testkit.commits import error_lines
from testkit.small import Small, run, slice_bytes, write, write_slices


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A cache of one commit in two shards."""
    small = Small(tmp_path_factory.mktemp("original"), rows=4, labels={f"1.2.3.0.{n}": n % 2 for n in range(9)})
    write_slices(small.src, range(6))
    small.build()
    return small


@pytest.fixture
def small(original: Small, tmp_path: Path) -> Small:
    return original.copy(tmp_path / "copy")


def commands(small: Small) -> tuple[tuple[object, ...], ...]:
    """Return every command that reads or writes a cache; build comes last."""
    out = small.out
    read = (("info", out), ("info", out, "--digest"), ("why", out, "000.dcm"), ("plan", *small.options()))
    page = ("report", out, "--out", small.folder / "report.html")
    work = (("verify", out), ("gc", out, "--yes"), ("publish", out, f"file://{small.folder / 'there'}"))
    return (*read, page, *work, ("build", *small.options(), "--workers", 0))


# --- links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["images/*/c", "sums/*/c", "images/*/c/2", ".pipeline/aside/images", ".pipeline/shards"]
)
def test_a_link_inside_a_cache_never_leads_a_write_outside(small, tmp_path, place):
    """Links in folders of shards are found when a shard is written, not before every command."""
    outside = tmp_path / "outside"
    [array] = small.out.glob("images/*-*")
    link = small.out / place.replace("*", array.name)
    if link.exists():
        shutil.move(link, outside)
    outside.mkdir(exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    write(small.src / "new.dcm", slice_bytes(7))
    [line] = error_lines(small.build(code=1).stderr)
    assert f"{link}: is a link; a cache must be self-contained: replace the link with what it points to" in line
    small.verify("--repair", "--src", small.src, code=None)
    assert sorted(outside.rglob("*")) == before
    link.unlink()
    if before:
        shutil.move(outside, link)
    small.build()
    small.verify()


def test_a_link_inside_an_address_never_leads_an_upload_outside(small, tmp_path):
    there, outside = tmp_path / "there", tmp_path / "outside"
    run("publish", small.out, f"file://{there}")
    shutil.rmtree(there / "tables")
    outside.mkdir()
    (there / "tables").symlink_to(outside)
    [line] = error_lines(run("publish", small.out, f"file://{there}", code=1).stderr)
    assert f"{there / 'tables'}: is a link" in line
    assert not list(outside.iterdir())


# --- pipes ---------------------------------------------------------------------------------------------------------


def test_pipes_and_devices_block_no_command_and_are_repaired(small):
    digest, others = small.digest(), itertools.cycle(commands(small)[:-1])
    for number, path in enumerate(sorted(path for path in small.out.rglob("*") if path.is_file())):
        path.unlink()
        os.symlink("/dev/zero", path) if number % 2 else os.mkfifo(path)
        for command in itertools.islice(others, 2):
            assert len(error_lines(run(*command, code=None).stderr)) <= 1
        if path.is_symlink() or path.name in ("lock", "publishing"):
            path.unlink()
        small.repair()
        assert small.digest() == digest
    small.verify()


def test_a_file_larger_than_any_in_a_cache_is_not_read(small):
    [commit] = (small.out / "commits").iterdir()
    content = commit.read_bytes()
    os.truncate(commit, 1 << 40)
    [line] = error_lines(run("info", small.out, code=1).stderr)
    assert "it has 1,099,511,627,776 bytes" in line
    assert "commits/" in small.verify(code=1).stdout
    small.repair()
    assert commit.read_bytes() == content


# --- other programs' files -----------------------------------------------------------------------------------------


def test_files_of_other_programs_survive_a_repair(small):
    others = [
        small.out / "rsync" / "images" / ".x.partial",
        small.out / ".zarr.json.Ab3.partial",
        small.out / "c" / "1",
    ]
    own = [small.out / "images" / ".x.0123abcd.partial", small.out / ".zarr.json.0123abcd.partial"]
    for path in others + own:
        write(path, b"half")
    said = small.repair().stdout
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in own)
    assert "moved aside" not in said


def test_an_address_with_files_of_another_program_loses_none_of_them(small, tmp_path):
    other = tmp_path / "there" / ".big.iso.partial"
    write(other, b"half")
    assert "holds files that do not belong" in run("publish", small.out, f"file://{other.parent}", code=1).stderr
    assert other.exists()


def test_files_moved_aside_are_listed_and_removed_only_on_request(small):
    stray = small.out / "tables" / "mine.csv"
    write(stray, b"mine")
    small.repair()
    aside = small.out / ".pipeline" / "aside" / "tables" / "mine.csv"
    assert aside.read_bytes() == b"mine"
    small.build()
    told = run("gc", small.out, "--older-than", "0s", "--yes").stdout
    assert "kept: 1 file that repairs moved into .pipeline/aside; --aside removes them too" in told
    assert aside.exists()
    assert "unused: 1 files that repairs moved aside" in run("gc", small.out, "--aside").stdout
    assert aside.exists()
    run("gc", small.out, "--aside", "--yes")
    assert not aside.parent.parent.exists()
    assert "nothing is unused" in run("gc", small.out, "--aside").stdout
    small.verify()


# --- a partial copy ------------------------------------------------------------------------------------------------


def test_every_command_refuses_a_cache_without_its_private_folder_with_advice_that_works(small, tmp_path):
    private = small.out / ".pipeline"
    shutil.move(private, tmp_path / "kept")
    before = sorted(small.folder.rglob("*"))
    repair = ("verify", small.out, "--repair", "--src", small.src)
    for command in (*commands(small), repair, ("build", *small.options(), "--dry-run")):
        [line] = error_lines(run(*command, code=1).stderr)
        assert "copied without its folder .pipeline: it can be used for training, but not extended" in line, command
        assert "copy that folder too, or build into a new --out" in line
    assert sorted(small.folder.rglob("*")) == before, "nothing was written"
    digest = small.clean_digest(tmp_path / "new")  # one remedy
    shutil.move(tmp_path / "kept", private)  # the other remedy
    small.verify()
    small.build()
    assert small.digest() == digest

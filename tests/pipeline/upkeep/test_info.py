"""What info and why report about a cache, intact or damaged."""

import json
import os
import re

import pandas as pd
import pytest

from testkit.dicom_files import ct_file, gradient
from testkit.small import LONG_AGO_NS, Small, run, slice_bytes, write, write_slices


def test_the_digest_depends_on_content_only(built, tmp_path):
    digest = built.digest()
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    other = Small(tmp_path / "other", sizes=(8, 12), rows=5, labels=built.labels)
    other.folder.mkdir()
    for number, path in enumerate(sorted(built.src.iterdir())):
        write(other.src / "deep" / f"{number}{path.suffix}", path.read_bytes(), LONG_AGO_NS + number)
    other.build()
    assert other.digest() == digest
    for change in ({"level": 41}, {"sizes": (8,)}, {"labels": built.labels | {"1.2.3.0.0": 1}}):
        for name, value in change.items():
            setattr(other, name, value)
        other.build()
        assert other.digest() != digest, change


def test_info_reports_the_contents_of_a_cache(built):
    found = json.loads(run("info", built.out, "--json").stdout)
    counts = dict(found["counts"])
    assert counts.pop("files") == sum(counts.values()) == 16
    assert (counts["duplicates"], counts["not_dicom"]) == (1, 1)
    assert found["num_slices"] == 13 + 11
    on_disk = sum(path.stat().st_size for path in built.out.rglob("*") if path.is_file())
    assert sum(found["bytes"].values()) == on_disk
    text = run("info", built.out).stdout
    assert "24" in text
    assert found["commit"] in text
    assert "no such cache" in run("info", built.folder / "absent", code=1).stderr


def test_why_reports_how_a_file_was_processed(with_history):
    table = pd.read_csv(with_history.out / "metadata.csv").set_index("sop_instance_uid")
    first = run("why", with_history.out, with_history.src / "000.dcm").stdout
    assert "the first build" in first
    assert f"row {table.loc['1.2.3.0.0', 'row']}" in first
    assert "its content changed" in run("why", with_history.out, "003.dcm").stdout
    assert "duplicate: the same slice as 005.dcm" in run("why", with_history.out, "twin.dcm").stdout
    assert "not_dicom" in run("why", with_history.out, "notes.txt").stdout
    for name, converted in (("000.dcm", True), ("twin.dcm", False), ("notes.txt", False)):
        said = run("why", with_history.out, name).stdout
        assert all((what in said) == converted for what in ("size 8 ", "size 12 ", "windows")), said
    frames = run("why", with_history.out, "frames.dcm").stdout
    assert frames.count("frame ") == frames.count("z_norm 0.5 from none") == 11
    assert "z_norm 0.0 from position" in first
    assert run("why", with_history.out, "./000.dcm").stdout == first
    for unknown in ("004.dcm", "", "."):
        assert "was not built from this file" in run("why", with_history.out, unknown, code=1).stderr


@pytest.mark.parametrize("rot", [None, b"rot", b"[]"])
def test_a_damaged_zarr_json_does_not_affect_a_build(built, rot):
    """The commit describes the array, and the next commit writes the file again."""
    for path in built.out.glob("images/*/zarr.json"):
        path.write_bytes(rot) if rot else path.unlink()
    write(built.src / "new.dcm", slice_bytes(40))
    built.build()
    built.verify()
    assert built.digest() == built.clean_digest(built.folder / "clean")


def test_a_damaged_zarr_json_of_an_uncommitted_array_is_one_line(built, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    built.level = 60
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.cache.drafts.Drafts.publish", interrupt)
        built.build(code=130)
    [path] = {path for path in built.out.glob("images/8-*/zarr.json") if b'"shape":[0,' in path.read_bytes()}
    path.write_bytes(b"rot")
    assert "zarr.json: damaged; run: pipeline verify --repair" in built.build(code=1).stderr
    built.repair()
    built.build()
    built.verify()


@pytest.mark.parametrize("rot", [None, b"rot"], ids=["missing", "damaged"])
@pytest.mark.parametrize("part", ["tables/*", ".pipeline/rejects/*", ".pipeline/shards/*", ".pipeline/ledgers/*"])
def test_damage_is_one_line_for_commands_that_read(built, part, rot):
    for path in built.out.glob(part):
        path.write_bytes(rot) if rot else path.unlink()
    said = run("why", built.out, "000.dcm", code=1).stderr
    if part in ("tables/*", ".pipeline/shards/*"):
        said += run("info", built.out, "--digest", code=1).stderr
    assert all(line.startswith("error:") and "pipeline verify --repair" in line for line in said.splitlines())


def test_why_finds_a_name_that_is_not_utf8(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    name = os.fsdecode(b"\xff.txt")
    write(small.src / name, b"not DICOM")
    small.build()
    assert "not_dicom" in run("why", small.out, small.src / name).stdout


def test_why_reports_what_gave_a_slice_its_position(tmp_path):
    small, absent = Small(tmp_path, rows=4), {}
    for steps, lacks in enumerate(("", "ImagePositionPatient", "SliceLocation", "InstanceNumber")):
        absent |= {lacks: None} if lacks else {}
        for number in range(5):
            uids = {"SOPInstanceUID": f"1.2.{steps}.{number}", "SeriesInstanceUID": f"1.3.{steps}"}
            z = {"ImagePositionPatient": [0, 0, 2 * number], "SliceLocation": 3 * number, "InstanceNumber": number + 1}
            write(small.src / f"{steps}{number}.dcm", ct_file(gradient(), **uids, **z | absent))
    small.build()
    for steps, name in enumerate(("position", "slice_location", "instance_number", "none")):
        for number in range(5):
            z_norm = number / 4 if name != "none" else 0.5
            assert f"z_norm {z_norm} from {name}\n" in run("why", small.out, f"{steps}{number}.dcm").stdout
    small.verify()

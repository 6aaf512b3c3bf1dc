"""Zip and tar archives are read in place, in their order, within limits."""

import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.source import archives
from pipeline.source.archives import Archive
from pipeline.source.files import Buffer
from pipeline.source.sources import open_source
from testkit.source_files import CONTENTS, read_all, write_tar, write_zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_in_place_in_its_order(tmp_path: Path, method: int) -> None:
    src = write_zip(tmp_path / "x.zip", CONTENTS, method)
    assert read_all(src) == CONTENTS
    listing = open_source(src).scan()
    assert listing.paths == list(CONTENTS)
    assert listing.ordered


@pytest.mark.parametrize("mode", ["w"])
@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_in_place_in_its_order(
    tmp_path: Path, mode: str, style: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarfile.TarFile, "format", style)
    src = write_tar(tmp_path / "x.tar", CONTENTS | {"d" * 90 + "/" + "e" * 60: b"long"})
    assert read_all(src) == CONTENTS | {"d" * 90 + "/" + "e" * 60: b"long"}
    assert open_source(src).scan().paths[:4] == list(CONTENTS)


def test_names_in_an_archive_are_never_paths(tmp_path: Path) -> None:
    members = {"../../escape": b"1", "/etc/passwd": b"2", ".hidden/x": b"h", "__MACOSX/a": b"m"}
    for src in (write_zip(tmp_path / "x.zip", members), write_tar(tmp_path / "x.tar", members)):
        assert sorted(read_all(src).values())[:2] == [b"1", b"2"]
        assert not any("hidden" in path for path in open_source(src).scan().paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar", "x.zip"]


def test_the_last_of_two_members_with_the_same_name_is_read(tmp_path: Path) -> None:
    src = write_zip(tmp_path / "x.zip", {"a": b"old", "b": b"new"}, zipfile.ZIP_STORED)
    data = Path(src).read_bytes()
    Path(src).write_bytes(data.replace(b"b", b"a"))
    assert read_all(src) == {"a": b"new"}


def test_zip64_and_comments_are_supported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("big", "w", force_zip64=True) as member:
            member.write(b"z" * 1000)
        archive.comment = b"PK\5\6 is not here" * 20
    # Zip64 records as in an archive of more than 4 GB, here added by hand to a small one.
    data = (tmp_path / "x.zip").read_bytes()
    at = data.rindex(b"PK\5\6", 0, data.index(b"PK\5\6 is not here"))
    _, _, _, _, count, size, offset, _ = struct.unpack_from("<4s4H2LH", data, at)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "y.zip").write_bytes(data[:at] + end64 + locator + end)
    assert read_all(str(tmp_path / "y.zip")) == {"big": b"z" * 1000}


def test_a_member_changed_without_its_time_has_another_stamp(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a", (2020, 1, 1, 0, 0, 0))
    stamps = []
    for name, content in (("x", b"1234"), ("y", b"5678")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(info, content)
        stamps.append(open_source(str(tmp_path / name)).scan().mtimes_ns[0])
    assert stamps[0] != stamps[1]


def test_damaged_members_and_archives_raise(tmp_path: Path) -> None:
    src = write_zip(tmp_path / "x.zip", {"a": os.urandom(1000), "b": b"good"})
    data = bytearray(Path(src).read_bytes())
    data[200] ^= 1
    Path(src).write_bytes(data)
    source = open_source(src)
    with pytest.raises(OSError, match="damaged"):
        source.read("a", Buffer())
    assert bytes(source.read("b", Buffer())[0]) == b"good"
    Path(src).write_bytes(data[:-30])
    with pytest.raises(SourceError, match="a damaged zip archive"):
        open_source(src).scan()


def test_missing_members_and_archives_raise(tmp_path: Path) -> None:
    src = write_zip(tmp_path / "x.zip", CONTENTS)
    source = open_source(src)
    with pytest.raises(FileNotFoundError):
        source.read("missing", Buffer())
    Path(src).unlink()
    with pytest.raises(FileNotFoundError):
        source.read("a.dcm", Buffer())


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = write_zip(tmp_path / "x.zip", {"bomb": bytes(20 << 20), "blank": bytes(512 * 512 * 2)})
    source = open_source(src)
    monkeypatch.setattr(archives, "_inflate", None)
    with pytest.raises(OSError, match="100 times"):
        source.read("bomb", Buffer())
    monkeypatch.undo()
    assert len(source.read("blank", Buffer())[0]) == 512 * 512 * 2
    # A member that is larger than its stated size is read only up to that size.
    data = bytearray(Path(src).read_bytes())
    entry = data.rindex(b"PK\1\2", 0, data.rindex(b"blank"))
    data[entry + 24 : entry + 28] = struct.pack("<L", 1000)
    Path(src).write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        open_source(src).read("blank", Buffer())
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(SourceError, match="more than 1 files"):
        open_source(write_zip(tmp_path / "y.zip", CONTENTS)).read("a.dcm", Buffer())


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    src = write_zip(tmp_path / "x.zip", {"a": b"secret"})
    data = bytearray(Path(src).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    Path(src).write_bytes(data)
    with pytest.raises(OSError, match="encrypted"):
        open_source(src).read("a", Buffer())


def test_a_compressed_tar_says_what_to_do(tmp_path: Path) -> None:
    src = write_tar(tmp_path / "x.tar.gz", CONTENTS, "w:gz")
    with pytest.raises(SourceError, match=r"compressed as a whole \(gzip\); unpack it"):
        open_source(src)


def test_an_index_is_small(tmp_path: Path) -> None:
    src = write_zip(tmp_path / "x.zip", {f"stage_2_train/ID_{number:09x}.dcm": b"" for number in range(3000)})
    index = archives.Index(archives.list_members(src, "zip"))
    size = sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray))
    assert size <= 64 * 3000
    assert isinstance(open_source(src), Archive)
    assert index.find("stage_2_train/ID_000000bb7.dcm").size == 0

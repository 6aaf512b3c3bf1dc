"""Damaged and unusual archives are read to their true end or refused in one line, never silently read in part."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.source.files import Buffer
from pipeline.source.sources import open_source
from testkit.source_files import CONTENTS, read_all, write_tar, write_zip

MEMBERS = {f"{number}.dcm": bytes([number]) * 700 for number in range(6)}


def reasons(src: str) -> dict[str, str]:
    """Return the error of each member that cannot be read."""
    source, found = open_source(src), {}
    for path in source.scan().paths:
        try:
            source.read(path, Buffer())
        except OSError as error:
            found[path] = str(error.strerror)
    return found


def test_the_reported_archives(test_data: Path) -> None:
    assert len(read_all(str(test_data / "reported/mac.zip"))) == 6
    assert len(set(read_all(str(test_data / "reported/hard.tar")).values())) == 5 + 1
    with pytest.raises(SourceError, match=r"damaged or incomplete tar .* after 3 members"):
        open_source(str(test_data / "reported/bad.tar")).scan()


# --- zip -------------------------------------------------------------------------------------------------------------


def test_a_zip_directory_is_read_up_to_its_size(tmp_path: Path) -> None:
    src = Path(write_zip(tmp_path / "x.zip", MEMBERS))
    data = bytearray(src.read_bytes())
    for count in (0, 2, 6):
        data[-14:-10] = struct.pack("<2H", count, count)
        src.write_bytes(data)
        assert read_all(str(src)) == MEMBERS
    data[-14:-10] = struct.pack("<2H", 7, 7)
    src.write_bytes(data)
    with pytest.raises(SourceError, match="a damaged zip archive"):
        open_source(str(src)).scan()


@pytest.mark.parametrize("change", [-46, -1, 1, 46])
def test_a_zip_directory_of_the_wrong_size_is_damaged(tmp_path: Path, change: int) -> None:
    src = Path(write_zip(tmp_path / "x.zip", MEMBERS))
    data = bytearray(src.read_bytes())
    (size,) = struct.unpack_from("<L", data, len(data) - 10)
    data[-10:-6] = struct.pack("<L", size + change)
    src.write_bytes(data)
    with pytest.raises(SourceError, match="a damaged zip archive"):
        open_source(str(src)).scan()


@pytest.mark.parametrize("wide", [(1 << 63, 5, 0), (5, 1 << 63, 0), (5, 5, 1 << 63), (5, 1 << 40, 0), (2**64 - 1,) * 3])
def test_a_member_beyond_the_end_makes_only_itself_unreadable(tmp_path: Path, wide: tuple[int, ...]) -> None:
    src = Path(write_zip(tmp_path / "x.zip", {"good": b"12345"} | {"bad": b"12345"}, zipfile.ZIP_STORED))
    data = src.read_bytes()
    at = data.rindex(b"PK\1\2")
    extra = struct.pack("<2H3Q", 1, 24, *wide)
    entry = bytearray(data[at : data.rindex(b"PK\5\6")])
    entry[20:28] = entry[42:46] * 0 + b"\xff" * 8
    entry[42:46] = b"\xff" * 4
    entry[30:32] = struct.pack("<H", len(extra))
    end = bytearray(data[data.rindex(b"PK\5\6") :])
    end[12:16] = struct.pack("<L", struct.unpack_from("<L", end, 12)[0] + len(extra))
    src.write_bytes(data[:at] + entry + extra + end)
    assert reasons(str(src)) == {"bad": "the member lies beyond the end of the archive"}


def test_a_name_that_is_not_utf_8_does_no_harm(tmp_path: Path) -> None:
    src = Path(write_zip(tmp_path / "x.zip", {"é.dcm": b"1", "b.dcm": b"2"}))
    src.write_bytes(src.read_bytes().replace("é".encode(), b"\xff\xfe"))
    assert sorted(read_all(str(src)).values()) == [b"1", b"2"]


@pytest.mark.parametrize(
    ("head", "what"),
    [(b"MZ" + bytes(600), "self-extracting"), (b"#!/bin/sh\n", "self-extracting"), (b"PK\7\x08", "spanned")],
)
def test_unsupported_kinds_of_zip_are_named(tmp_path: Path, head: bytes, what: str) -> None:
    src = Path(write_zip(tmp_path / "x.exe", MEMBERS))
    src.write_bytes(head + src.read_bytes())
    with pytest.raises(SourceError, match=what):
        open_source(str(src))


def test_the_last_part_of_a_spanned_zip_is_named(tmp_path: Path) -> None:
    src = Path(write_zip(tmp_path / "x.zip", MEMBERS))
    data = bytearray(src.read_bytes())
    data[-18:-14] = struct.pack("<2H", 2, 2)
    src.write_bytes(data)
    with pytest.raises(SourceError, match="spanned"):
        open_source(str(src)).scan()


# --- tar -------------------------------------------------------------------------------------------------------------


def packed(members: dict[str, bytes]) -> bytes:
    """Return a tar without its end-of-archive blocks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        size = archive.offset
    return out.getvalue()[:size]


END = bytes(1024)


@pytest.mark.parametrize("cut", [0, 512, 700, 1536, 1536 * 4, 1536 * 4 + 100, 1536 * 6])
def test_a_truncated_tar_is_refused(tmp_path: Path, cut: int) -> None:
    src = tmp_path / "x.tar"
    src.write_bytes((packed(MEMBERS) + END)[: max(cut, 512)])
    with pytest.raises(SourceError, match=r"damaged (or incomplete )?tar"):
        open_source(str(src)).scan()


@pytest.mark.parametrize("number", range(1, 6))
def test_a_damaged_header_is_reported_with_the_number_of_members_before_it(tmp_path: Path, number: int) -> None:
    data = bytearray(packed(MEMBERS) + END)
    data[1536 * number + 150] ^= 1
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SourceError, match=f"damaged or incomplete tar .* after {number} members"):
        open_source(str(tmp_path / "x.tar")).scan()


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path) -> None:
    first, second = dict(list(MEMBERS.items())[:2]), dict(list(MEMBERS.items())[2:])
    for between in (END, END + bytes(9216), END + bytes(512)):
        (tmp_path / "x.tar").write_bytes(packed(first) + between + packed(second) + END)
        assert read_all(str(tmp_path / "x.tar")) == MEMBERS
    (tmp_path / "x.tar").write_bytes(packed(first) + END + b"something else" * 100)
    with pytest.raises(SourceError, match="something other than a tar follows after 2 members"):
        open_source(str(tmp_path / "x.tar")).scan()


def write_links(path: Path, links: list[tuple[str, bytes, str]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            content = b"content" if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def test_links_are_read_as_their_targets(tmp_path: Path) -> None:
    src = write_links(
        tmp_path / "x.tar",
        [
            ("d", tarfile.DIRTYPE, ""),
            ("d/forward", tarfile.SYMTYPE, "../a"),
            ("a", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "a"),
            ("d/chain", tarfile.SYMTYPE, "forward"),
            ("to_folder", tarfile.SYMTYPE, "d"),
            ("round", tarfile.SYMTYPE, "about"),
            ("about", tarfile.SYMTYPE, "round"),
            ("outside", tarfile.SYMTYPE, "/etc/passwd"),
            ("pipe", tarfile.FIFOTYPE, ""),
        ],
    )
    assert reasons(src) == dict.fromkeys(
        ("round", "about", "outside"), "the member is a link to nothing in the archive"
    )
    source = open_source(src)
    for path in set(source.scan().paths) - reasons(src).keys():
        assert bytes(source.read(path, Buffer())[0]) == b"content"
    assert set(source.scan().paths) == {"a", "hard", "d/forward", "d/chain", "round", "about", "outside"}


@pytest.mark.parametrize("mtime", ["inf", "-inf", "nan", "1e30", "-1e30", "1e300"])
def test_an_impossible_time_does_no_harm(tmp_path: Path, mtime: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.size, info.pax_headers = 3, {"mtime": mtime}
        archive.addfile(info, io.BytesIO(b"abc"))
    assert read_all(str(tmp_path / "x.tar")) == {"a": b"abc"}


def test_a_tar_in_the_old_format_is_named(tmp_path: Path) -> None:
    data = bytearray(packed(MEMBERS) + END)
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:155] = b"%06o\0" % sum(data[:512])
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SourceError, match=r"old \(v7\) format"):
        open_source(str(tmp_path / "x.tar"))


# --- in folders ------------------------------------------------------------------------------------------------------


def test_archives_and_compressed_files_in_a_folder_are_read_in_place(tmp_path: Path) -> None:
    import gzip

    write_zip(tmp_path / "one.zip", CONTENTS)
    (tmp_path / "deep").mkdir()
    write_tar(tmp_path / "deep/two.TAR", MEMBERS)
    (tmp_path / "loose.dcm").write_bytes(b"loose")
    (tmp_path / "IM1.dcm.gz").write_bytes(gzip.compress(b"compressed" * 100))
    expected = {f"one.zip/{name}": content for name, content in CONTENTS.items()}
    expected |= {f"deep/two.TAR/{name}": content for name, content in MEMBERS.items()}
    expected |= {"loose.dcm": b"loose", "IM1.dcm.gz": b"compressed" * 100}
    assert read_all(str(tmp_path)) == expected
    assert open_source(str(tmp_path)).scan().ordered
    assert read_all(str(tmp_path / "IM1.dcm.gz")) == {"IM1.dcm.gz": b"compressed" * 100}


def test_an_unreadable_archive_in_a_folder_makes_only_itself_unreadable(tmp_path: Path) -> None:
    import gzip

    write_tar(tmp_path / "good.tar", MEMBERS)
    (tmp_path / "cut.tar").write_bytes(packed(MEMBERS))
    write_tar(tmp_path / "whole.tar.gz", MEMBERS, "w:gz")
    (tmp_path / "bomb.dcm.gz").write_bytes(gzip.compress(bytes(64 << 20)))
    (tmp_path / "cut.dcm.gz").write_bytes(gzip.compress(os.urandom(1000))[:-20])
    (tmp_path / "no.zip").write_bytes(b"no zip")
    (tmp_path / "empty.zip").write_bytes(b"PK\5\6" + bytes(18))
    found = reasons(str(tmp_path))
    assert set(found) == {"cut.tar", "whole.tar.gz", "bomb.dcm.gz", "cut.dcm.gz", "empty.zip"}
    assert "after 6 members" in found["cut.tar"]
    assert "compressed as a whole" in found["whole.tar.gz"]
    assert "100 times" in found["bomb.dcm.gz"]
    assert "is truncated" in found["cut.dcm.gz"]
    assert not any(str(tmp_path) in reason for reason in found.values())


def test_a_folder_may_be_named_like_an_archive(tmp_path: Path) -> None:
    (tmp_path / "study.zip").mkdir()
    (tmp_path / "study.zip/a.dcm").write_bytes(b"a")
    assert read_all(str(tmp_path)) == {"study.zip/a.dcm": b"a"}

"""Every name maps to one text and back, and the text is harmless in tables, terminals and spreadsheets."""

import csv
import io
import unicodedata

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.source.files import Buffer
from pipeline.source.names import escaped, listed_name, opened_name
from pipeline.source.sources import open_source
from pipeline.tables.tables import to_csv
from testkit.dicom_files import ct_file, gradient
from testkit.small import Small, write
from testkit.source_files import read_all, write_tar

ODD = [
    "Icon\r",
    "IM1\r",
    "a\nb",
    "\x1b]0;title\x07",
    "\uf7a0",
    "\udca0",
    "\x85",
    "\u2028",
    "=HYPERLINK(1)",
    "@x",
    "-x",
    "+x",
]


def decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@given(st.one_of(st.binary(max_size=20), st.text(max_size=12).map(lambda name: name.encode("utf-8", "surrogatepass"))))
@example(b"Icon\r")
@example(b"a\0b")
@example("\uf7a0".encode())
@example(b"\xa0")
@example(b"\xef\x9e")
@example(b"=HYPERLINK(1)")
@example("\u202egnp.exe\ufeff".encode())
def test_every_sequence_of_bytes_maps_to_one_text_and_back(name: bytes) -> None:
    text = listed_name(decoded(name))
    assert opened_name(text).encode("utf-8", "surrogateescape") == name
    assert text.encode() == text.encode("utf-8", "strict")
    for line in (text, escaped(text)):
        assert not {unicodedata.category(char) for char in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        assert line.splitlines() in ([line], [])
    assert text[:1] not in tuple("=+-@")


@given(st.lists(st.binary(max_size=8), max_size=8))
def test_a_table_with_any_names_reads_back(names: list[bytes]) -> None:
    texts = [listed_name(decoded(b"x" + name)) for name in names]
    table = to_csv(pd.DataFrame({"path": texts, "code": ["unreadable"] * len(texts)}))
    assert [row["path"] for row in csv.DictReader(io.StringIO(table.decode(), newline=""))] == texts
    if texts:
        back = pd.read_csv(io.BytesIO(table), keep_default_na=False, dtype=str)
        assert back["path"].tolist() == texts


def test_two_names_never_have_one_text() -> None:
    names = [bytes([byte]) for byte in range(256)] + [chr(0xF700 + byte).encode() for byte in range(256)]
    assert len({listed_name(decoded(name)) for name in names}) == len(names)


@pytest.mark.parametrize("name", ODD)
def test_files_and_members_with_any_name_are_read(tmp_path, name: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / name).write_bytes(b"content")
    assert list(read_all(str(tmp_path / "src")).values()) == [b"content"]
    tar = open_source(write_tar(tmp_path / "x.tar", {name: b"content"}))
    (path,) = tar.scan().paths
    assert path == listed_name(name)
    assert bytes(tar.read(path, Buffer())[0]) == b"content"


def test_a_build_of_files_with_any_name_writes_tables_that_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    small = Small(tmp_path)
    for number, name in enumerate(ODD):
        write(small.src / f"{name}.dcm", ct_file(gradient(), SOPInstanceUID=f"1.2.{number}"))
        (small.src / f"{name}.txt").write_bytes(b"no DICOM")
    small.build()
    small.build()
    rejects = pd.read_csv(small.out / "rejects.csv", keep_default_na=False)
    assert sorted(rejects["path"]) == sorted(listed_name(f"{name}.txt") for name in ODD)
    assert len(pd.read_csv(small.out / "metadata.csv")) == len(ODD)
    for file in ("rejects.csv", "metadata.csv"):
        assert b"\r" not in (small.out / file).read_bytes()
        assert b"\n=" not in (small.out / file).read_bytes()

"""Each call prints one line, without control characters."""

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import terminal
from pipeline.source.names import escaped
from testkit.small import Small, slice_bytes, write


@given(st.text(st.characters(), max_size=40))
def test_any_text_is_escaped_to_a_printable_one(text):
    shown = escaped(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nerror: forged", r"a\nerror: forged"),
        ("a\rb", r"a\rb"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\x9b2J", r"\x9b2J"),
        (b"\xff.dcm".decode("utf-8", "surrogateescape"), r"\udcff.dcm"),
        ("Kopf übel 頭部.dcm", "Kopf übel 頭部.dcm"),
    ],
)
def test_control_characters_are_printed_as_escapes(text, shown, capsys):
    terminal.print_line(text)
    assert capsys.readouterr().out == shown + "\n"


def test_characters_that_the_terminal_lacks_are_printed_as_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.print_line("ü")
    assert stream.buffer.getvalue() == b"\\xfc\n"


def test_errors_have_a_limited_length_and_a_closed_terminal_is_ignored(capsys, monkeypatch):
    terminal.print_error("x" * 100_000)
    assert len(capsys.readouterr().err) == len("error: ") + terminal.MAX_ERROR_CHARACTERS + 1

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    terminal.print_error("x")
    terminal.print_status("x")


def test_file_names_are_printed_with_escapes(tmp_path):
    small = Small(tmp_path)
    evil = small.src / "a\x1b[31m\nerror: forged.dcm"
    write(small.src / "good.dcm", slice_bytes(1))
    write(evil, slice_bytes(2))
    small.build()
    evil.unlink()
    said = small.build(code=1).output
    assert r"such as a\x1b[31m\x0aerror: forged.dcm;" in said
    assert "\x1b" not in said
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [said.splitlines()[-1]]
    assert Path(small.out / "zarr.json").exists()

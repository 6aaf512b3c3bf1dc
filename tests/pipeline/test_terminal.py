"""What is printed: one line a call, and nothing that a terminal would act on."""

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
def test_any_text_is_printable_and_tells_texts_apart(text):
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
def test_what_a_terminal_acts_on_is_an_escape(text, shown, capsys):
    terminal.say(text)
    assert capsys.readouterr().out == shown + "\n"


def test_a_terminal_without_umlauts_shows_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.say("ü")
    assert stream.buffer.getvalue() == b"\\xfc\n"


def test_an_error_is_of_bounded_length_and_survives_a_terminal_that_is_gone(capsys, monkeypatch):
    terminal.complain("x" * 100_000)
    assert len(capsys.readouterr().err) == len("error: ") + terminal.MAX_ERROR_CHARACTERS + 1

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    terminal.complain("x")
    terminal.note("x")


def test_a_file_name_reaches_the_terminal_as_escapes(tmp_path):
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

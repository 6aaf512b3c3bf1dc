"""Test that advice.toml lists every message with a remedy, and that the test it names exists."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGES = ("phantom", "pipeline", "training")
VERBS = (
    "add|allow|bring|build|call|check|choose|chmod|compare "
    "runs|correct|delete|download|end|evaluate|export|fetch|fix|free|give|go|"
    "install|join|keep|label|leave|load|lower --|make|move|name|pack|pip|predict|publish|put|quote|raise|read|"
    "remove|rename|repack|replace|restore|run|save|say|send|set|split|start|take|train|try|unpack|unset|update|upgrade|use|wait|write"
)
# The imperative is at the start, after a semicolon, colon or bracket, or follows "or" as an alternative.
ADVICE = re.compile(rf"(?:^|[;:(?] |, or |^or |\. )(?:{VERBS})\b(?! of\b)|(?:[;.,/]+ |^)[Rr]un: ")


def _text(node: ast.AST) -> str | None:
    """Return the text of a string, with `{}` for interpolated values, or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def _strings(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module except docstrings, help texts of options, and parts of other strings."""
    left_out: set[int] = set()
    for node in ast.walk(tree):
        skips_parts = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "help")
        if skips_parts or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            left_out |= {id(part) for part in ast.walk(node) if part is not node}
        if id(node) not in left_out and (words := _text(node)):
            yield words


@cache
def _messages() -> dict[str, str]:
    """Return message with advice -> its file."""
    found = {}
    for package in PACKAGES:
        for file in sorted((TESTS.parent / package).rglob("*.py")):
            tree = ast.parse(file.read_text("utf-8"))
            found |= {
                words: f"{package}/{file.name}" for words in _strings(tree) if " " in words and ADVICE.search(words)
            }
    return found


def _entries() -> list[tuple[str, str, str]]:
    """Return file, function and part of a message for each entry of the list."""
    files = tomllib.loads((TESTS / "advice.toml").read_text("utf-8"))
    return [(file, test, piece) for file, of in files.items() for test, pieces in of.items() for piece in pieces]


def test_each_message_with_advice_has_a_test_that_follows_it() -> None:
    pieces = [piece for _, _, piece in _entries()]
    missing = [f"{where}: {words}" for words, where in _messages().items() if not any(p in words for p in pieces)]
    assert not missing, "follow these messages in tests, and list them in tests/advice.toml:\n" + "\n".join(missing)


def test_listed_messages_exist() -> None:
    gone = [piece for _, _, piece in _entries() if not any(piece in words for words in _messages())]
    assert not gone, f"no message has these words: {gone}"


@pytest.mark.parametrize("file", sorted({file for file, _, _ in _entries()}))
def test_listed_tests_exist(file: str) -> None:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {test for of, test, _ in _entries() if of == file} <= functions

"""Random edits of documents, lines of tables and bytes: paths, numbers, types and structure."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = (
    "",
    "../x",
    "../../outside/x",
    "tables/../../x.csv",
    "images/8-../x",
    "\0",
    "\ud800",
    "\uf7a0",
    "a" * 100_000,
    "\x1b]0;x\a",
    "=HYPERLINK(1)",
    "{0!r}",
    "os:system",
)
NUMBERS = (-1, 0, 1, 2, 2**31, 2**63, 10**30, 1e308, -0.0, 0.1, float("inf"), float("nan"))


def others() -> tuple[Any, ...]:
    """Return new values of other types; new ones, as later edits may change them."""
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    return None, True, [], {}, [[]] * 1000, nested, {"a": {"a": {"a": 1}}}


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each value inside a JSON document."""
    found = [path] if path else []
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inside:
        found += places(value, (*path, key))
    return found


def value(rng: np.random.Generator, outside: Path) -> Any:
    """Return a hostile text, number, or value of another type; some texts are paths of a folder outside."""
    choices: Sequence[Any] = ((*TEXTS, str(outside / "x"), outside.as_uri()), NUMBERS, others())[rng.integers(3)]
    return choices[rng.integers(len(choices))]


def edit(document: Any, rng: np.random.Generator, outside: Path) -> str:
    """Change, rename, drop or duplicate one value; return a description."""
    ways = places(document)
    if not ways:
        return "nothing"
    *way, last = ways[rng.integers(len(ways))]
    inside = document
    for key in way:
        inside = inside[key]
    name, how = ".".join(map(str, (*way, last)))[:80], rng.random()
    if how < 0.1 and isinstance(inside, dict):
        inside[f"{last}x"] = inside.pop(last)
        return f"{name} renamed"
    if how < 0.2:
        del inside[last]
        return f"{name} dropped"
    if how < 0.3 and isinstance(inside, list):
        inside.insert(last, inside[last])
        return f"{name} doubled"
    inside[last] = value(rng, outside)
    return f"{name} = {str(inside[last])[:40]!r}"


def edit_text(text: str, rng: np.random.Generator, outside: Path, separator: str) -> tuple[str, str]:
    """Change a line of a text, or a field of it; return the new text and a description."""
    lines = text.split("\n")
    number = int(rng.integers(len(lines)))
    fields = lines[number].split(separator)
    place, how = int(rng.integers(len(fields))), rng.integers(7)
    new = str(value(rng, outside)).replace("\ud800", "\udc80")
    if how == 0:
        lines.insert(number, lines[number])
    elif how == 1:
        del lines[number]
    elif how == 2:
        lines[number] += separator + new
    elif how == 3:
        lines[number] = lines[number][: len(lines[number]) // 2] + '"'
    elif how == 4:
        lines[number] = " " * int(rng.integers(1, 9)) + lines[number]
    else:
        fields[place] = new
        lines[number] = separator.join(fields)
    return "\n".join(lines), f"line {number}, edit {how}, {new[:40]!r}"


def edit_bytes(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Flip a bit, cut, lengthen, empty, or overwrite four bytes with an extreme number."""
    how, at = rng.integers(5), int(rng.integers(max(1, len(content))))
    if how == 0:
        changed = bytearray(content or b"\0")
        changed[at] ^= 1 << int(rng.integers(8))
        return bytes(changed), f"a bit of byte {at}"
    if how == 1:
        return content[:at], f"cut at {at}"
    if how == 2:
        return content + bytes(int(rng.integers(1, 5000))), "lengthened"
    if how == 3:
        return b"", "emptied"
    number = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"../x")[rng.integers(4)]
    return content[:at] + number + content[at + 4 :], f"{number!r} at {at}"


def replace(file: Path, rng: np.random.Generator, outside: Path) -> str:
    """Replace a file by a folder, a pipe, a link, another file's content, or nothing."""
    how = int(rng.integers(6))
    target = outside / "x"
    beside = sorted(path for path in file.parent.iterdir() if path.is_file())
    if how == 5:
        shutil.copyfile(beside[rng.integers(len(beside))], file.with_name("taken"))
        os.replace(file.with_name("taken"), file)
        return f"{file.name} is another file of its folder"
    file.unlink()
    if how == 0:
        (file / "inside").mkdir(parents=True)
    elif how == 1:
        os.mkfifo(file)
    elif how == 2:
        file.symlink_to(target)
    elif how == 3:
        file.symlink_to("/dev/zero")
    return f"{file.name} is {('a folder', 'a pipe', 'a link outside', 'a link to a device', 'gone')[how]}"


def flip_bit(path: Path, rng: np.random.Generator) -> int:
    """Flip a random bit of a file; return its index."""
    content, bit = bytearray(path.read_bytes()), int(rng.integers(path.stat().st_size * 8))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return bit

"""Hostile archives, catalogs and label files."""

import csv
import io
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.cli.main import main
from pipeline.report.pictures import read_row
from pipeline.upkeep.info import require_head
from testkit.hostile.edits import TEXTS, edit_bytes, edit_text
from testkit.hostile.engine import Hostile, Kind
from testkit.small import Small, slice_bytes, write_slices
from testkit.source_files import write_tar, write_zip

SLICES = 3
MEMBERS = {f"scan/{number}.dcm": slice_bytes(number) for number in range(SLICES)}
LABELS = {f"1.2.3.0.{number}": number % 2 for number in range(SLICES)}


def kinds(folder: Path) -> dict[str, Kind]:
    """Return the kinds of hostile sources, edited from a valid source with its catalog and labels."""
    folder.mkdir(parents=True)
    small = Small(folder, labels=LABELS)
    write_slices(small.src, range(SLICES))
    small.options()
    small.build()
    right = slices_of(small)
    (small.out).rename(folder / "right.zarr")
    write_zip(folder / "scan.zip", MEMBERS, zipfile.ZIP_STORED)
    write_tar(folder / "scan.tar", MEMBERS)
    return {
        "zip": Kind(main, folder, _archive("scan.zip", _edit_zip, right)),
        "tar": Kind(main, folder, _archive("scan.tar", _edit_tar, right)),
        "catalog": Kind(main, folder, _catalog),
        "label file": Kind(main, folder, _labels(right)),
    }


Slices = dict[str, tuple[bytes, dict[str, float]]]  # SOP Instance UID -> pixels, labels


def slices_of(small: Small) -> Slices:
    """Return the pixels and labels of each slice in a cache."""
    head = require_head(small.cache)
    table = pd.read_csv(small.out / "metadata.csv", dtype={"sop_instance_uid": str})
    names = head.terms.class_names
    return {
        line["sop_instance_uid"]: (
            read_row(small.cache, head, int(line["row"])).tobytes(),
            {name: float(line[name]) for name in names},
        )
        for line in table.to_dict("records")
    }


def _build(folder: Path, src: str, *more: object) -> tuple[object, ...]:
    out = folder / "cache.zarr"
    return ("build", "--src", folder / src, "--out", out, "--catalog", folder / "catalog.yaml", "--workers", 0, *more)


# --- archives ------------------------------------------------------------------------------------------------------


def _archive(
    name: str, change: Callable[[bytes, np.random.Generator], tuple[bytes, str]], right: Slices
) -> Callable[[Path, np.random.Generator], Hostile]:
    def of(folder: Path, rng: np.random.Generator) -> Hostile:
        content, what = change((folder / name).read_bytes(), rng)
        (folder / name).write_bytes(content)
        labels = ("--labels", folder / "labels.csv")

        def check(codes: Sequence[int]) -> str:
            small = Small(folder, labels=LABELS)
            if not (small.out / "zarr.json").exists():
                return ""
            found = slices_of(small)
            return "" if found.items() <= right.items() else "a slice has other pixels or labels than its file"

        build = _build(folder, name, *labels, "--max-rejects", "100%")
        look = (("verify", folder / "cache.zarr"), ("why", folder / "cache.zarr", "0.dcm"))
        return Hostile(f"{name}: {what}", ("cache.zarr",), (build, build, *look), check)

    return of


def _edit_zip(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Change a number or a name in a header, or bytes anywhere; each member has a CRC-32."""
    how = rng.integers(3)
    if how == 0:
        return edit_bytes(content, rng)
    changed = bytearray(content)
    starts = [at for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for at in _all(content, mark)]
    start = starts[rng.integers(len(starts))]
    if how == 1:
        at = start + int(rng.integers(4, 46))
        number = struct.pack("<L", (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80, len(content))[rng.integers(6)])
        changed[at : at + 4] = number
        return bytes(changed), f"header at {start}: {number.hex()} at {at - start}"
    name = _text(rng, 10)
    return content.replace(b"scan/0.dcm", name), f"a member is called {name!r}"


def _edit_tar(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Change a field of a header and correct its checksum; a tar has no checksum of contents."""
    changed = bytearray(content)
    headers = [at - 257 for at in _all(content, b"ustar")]
    start = headers[rng.integers(len(headers))]
    fields = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1)}
    fields |= {"linkname": (157, 100), "magic": (257, 8), "prefix": (345, 155)}
    name = list(fields)[rng.integers(len(fields))]
    at, length = fields[name]
    options = [_text(rng, length), b"\xff" * length, b"\x80" + b"\xff" * (length - 1), b"0" * length, b"7" * length]
    new = options[rng.integers(len(options))][:length].ljust(length, b"\0")
    if name == "type":
        new = b"0123456LKxgSV\xff"[(place := int(rng.integers(14))) : place + 1]
    changed[start + at : start + at + length] = new
    changed[start + 148 : start + 156] = b" " * 8
    changed[start + 148 : start + 156] = f"{sum(changed[start : start + 512]):06o}\0 ".encode()
    return bytes(changed), f"{name} of the header at {start} = {new[:30]!r}"


def _all(content: bytes, mark: bytes) -> list[int]:
    return [at for at in range(len(content)) if content.startswith(mark, at)]


def _text(rng: np.random.Generator, length: int) -> bytes:
    return TEXTS[rng.integers(len(TEXTS))].encode("utf-8", "surrogatepass")[:length].ljust(length, b"/")


# --- catalogs ------------------------------------------------------------------------------------------------------

BOMBS = (
    "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
    "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nwindows: [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\n",
    "windows: " + "[" * 5000 + "]" * 5000,
    "windows: &w [*w]\n",
    "windows: !!python/object/apply:os.system ['touch ../outside/x']\n",
    "? [a, b]\n: c\n",
    "\x00",
    "{" * 2000,
    "sizes: [224]\nsizes: [8]\n",
)


def _catalog(folder: Path, rng: np.random.Generator) -> Hostile:
    file = folder / "catalog.yaml"
    if rng.random() < 0.15:
        text, what = BOMBS[rng.integers(len(BOMBS))], "a bomb"
    else:
        text, what = edit_text(file.read_text(), rng, folder.parent / "outside", ": ")
    file.write_text(text, errors="surrogateescape")
    build = _build(folder, "dicoms")
    plan = ("plan", *build[1:-2])
    return Hostile(f"catalog: {what}", ("cache.zarr",), (plan, build, ("info", folder / "cache.zarr")))


# --- labels --------------------------------------------------------------------------------------------------------


def _labels(right: Slices) -> Callable[[Path, np.random.Generator], Hostile]:
    def of(folder: Path, rng: np.random.Generator) -> Hostile:
        file = folder / "labels.csv"
        text, what = edit_text(file.read_text(), rng, folder.parent / "outside", ",")
        file.write_text(text, errors="surrogateescape")

        def check(codes: Sequence[int]) -> str:
            small = Small(folder, labels=LABELS)
            if not (small.out / "zarr.json").exists():
                return ""
            said = list(csv.reader(io.StringIO(text.replace("\0", ""))))
            for uid, (pixels, labels) in slices_of(small).items():
                lines = [line for line in said if line[:1] == [uid]]
                if pixels != right[uid][0]:
                    return f"{uid} has other pixels"
                for name, label in labels.items():
                    if label != right[uid][1][name] and not _is_said(said, lines, name, label):
                        return f"{uid}: {name} is {label}, which is not in its line"
            return ""

        build = _build(folder, "dicoms", "--labels", file)
        return Hostile(f"labels: {what}", ("cache.zarr",), (build, build), check)

    return of


def _is_said(said: list[list[str]], lines: list[list[str]], name: str, label: float) -> bool:
    """Return whether a line of the file has this label in this column, or there is no label."""
    if label != label:
        return True
    at = said[0].index(name) if said and name in said[0] else -1
    return any(at < len(line) and _number(line[at]) == label for line in lines)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

"""The bodies of `info` and `why`: what is in a cache, and when and why a file was built."""

from pathlib import Path
from typing import Any

from pipeline.cache.paths import Cache
from pipeline.terminal import in_bytes, print_json, print_line
from pipeline.upkeep import info as info_of
from pipeline.words import counted


def info(*, folder: Path, only_digest: bool, as_json: bool) -> None:
    """Say what is in a cache: commits, settings, counts, sizes, and the share of dead rows."""
    cache = Cache(folder)
    if only_digest:
        print_line(info_of.digest(cache))
        return
    found = info_of.summary(cache)
    if as_json:
        print_json(found)
        return
    for line in _lines(cache, found):
        print_line(line)


def _lines(cache: Cache, found: dict[str, Any]) -> list[str]:
    counts, rows = found["counts"], found["rows"]
    others = [f"{number:,} {kind.replace('_', ' ')}" for kind, number in counts.items() if number and kind != "files"]
    windows = ", ".join(f"{w['name']} {w['level_hu']:g}/{w['width_hu']:g} HU" for w in found["windows"])
    sizes = ", ".join(f"{side} ({in_bytes(found['bytes'][side])})" for side in found["sizes"])
    labels = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in found["label_counts"].items())
    classes = ", ".join(klass["name"] for klass in found["classes"])
    every = [f"{of['commit']}  {of['created']}  {counted(of['slices'], 'slice')}" for of in found["commits"]]
    lines = [
        f"{cache}: commit {found['commit']} of {found['created']}",
        f"data set   {found['dataset']}, from {found['source']}",
        f"slices     {found['num_slices']:,}",
        f"files      {counts['files']:,}: {', '.join(others)}",
        f"labels     {f'{classes}; {labels}' if classes else 'none'}",
        f"windows    {windows}",
        f"sizes      {sizes}",
        f"rows       {rows['stored']:,} stored, {100 * rows['dead_share']:.1f} % of them dead",
        f"unused     {in_bytes(found['bytes']['unused'])}; `pipeline gc` removes it once no kept commit names it",
        *(f"{'' if number else 'commits':<10} {line}" for number, line in enumerate(every)),
    ]
    if left := found["unfinished"]:
        done = f"{left['done']:,} of {left['shards']:,} shards"
        if found["running"]:
            lines.append(f"running    a build has finished {done}: {found['running']}")
        else:
            lines.append(f"unfinished a build was interrupted after {done}; run it again")
    return lines


def why(*, folder: Path, file: str) -> None:
    """Say when a DICOM file was built, from which content, with which settings and versions, into which row."""
    history = info_of.why(Cache(folder), file)
    print_line(history.path)
    for name, value in history.facts:
        print_line(f"  {name:<9} {value}")

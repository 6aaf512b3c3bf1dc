"""The body of `gc`: print what no kept commit uses, and remove it."""

import re
import time
from pathlib import Path

import click

from pipeline.cache.lock import lock, shared_lock
from pipeline.cache.paths import Cache
from pipeline.terminal import in_bytes, print_line
from pipeline.upkeep.gc import find_unused, remove, set_aside
from pipeline.upkeep.info import require_head
from pipeline.words import counted

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def gc(*, folder: Path, older_than: str, aside: bool, yes: bool) -> None:
    """Say what no kept commit uses and how large it is; remove it with --yes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", older_than)
    if not match:
        raise click.UsageError(
            f"--older-than {older_than}: give a number and a unit (s, m, h, d or w), such as 12h or 7d."
        )
    cache = Cache(folder)
    require_head(cache)
    with lock(cache) if yes else shared_lock(cache):
        unused = find_unused(cache, float(match[1]) * SECONDS[match[2]], time.time(), aside=aside)
        what = ", ".join(f"{number:,} {kind}" for kind, number in unused.counts().items())
        if unused.unfinished:
            print_line(f"kept: {counted(unused.unfinished, 'shard')} of an interrupted build")
        if not aside and (moved := len(set_aside(cache))):
            print_line(
                f"kept: {counted(moved, 'file')} that repairs moved into .pipeline/aside; --aside removes them too"
            )
        if not what:
            print_line(f"{cache}: nothing is unused")
        elif yes:
            remove(cache, unused)
            print_line(f"{cache}: removed {what}: {in_bytes(unused.size)}")
        else:
            print_line(f"{cache}: unused: {what}: {in_bytes(unused.size)}; remove it with --yes")

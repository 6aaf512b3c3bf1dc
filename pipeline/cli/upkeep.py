"""The commands that look after a cache: info, why, report, verify and gc."""

import re
import time
from pathlib import Path
from typing import Any

import click

from pipeline.cli.body import EXIT_CODES, command
from pipeline.terminal import complain, say, say_json

CACHE = click.argument("cache", type=click.Path(path_type=Path))
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@click.command(epilog=EXIT_CODES)
@CACHE
@click.option("--digest", "only_digest", is_flag=True, help="Print the digest of slices, pixels and labels, no more.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@command
def info(cache: Path, only_digest: bool, as_json: bool) -> None:
    """Say what is in a cache: commits, settings, counts, sizes, and the share of dead rows.

    The digest is the same for the same content, whatever the order in which it was built.
    """
    from pipeline.upkeep.info import digest, summary

    if only_digest:
        say(digest(cache))
        return
    found = summary(cache)
    if as_json:
        say_json(found)
        return
    for line in _lines(cache, found):
        say(line)


def _lines(cache: Path, found: dict[str, Any]) -> list[str]:
    counts, rows = found["counts"], found["rows"]
    others = [f"{number:,} {kind.replace('_', ' ')}" for kind, number in counts.items() if number and kind != "files"]
    windows = ", ".join(f"{w['name']} {w['level_hu']:g}/{w['width_hu']:g} HU" for w in found["windows"])
    sizes = ", ".join(f"{side} ({_bytes(found['bytes'][side])})" for side in found["sizes"])
    labels = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in found["label_counts"].items())
    classes = ", ".join(klass["name"] for klass in found["classes"])
    every = [f"{commit['commit']}  {commit['created']}  {commit['slices']:,} slices" for commit in found["commits"]]
    lines = [
        f"{cache}: commit {found['commit']} of {found['created']}",
        f"data set   {found['dataset']}, from {found['source']}",
        f"slices     {found['num_slices']:,}",
        f"files      {counts['files']:,}: {', '.join(others)}",
        f"labels     {f'{classes}; {labels}' if classes else 'none'}",
        f"windows    {windows}",
        f"sizes      {sizes}",
        f"rows       {rows['stored']:,} stored, {100 * rows['dead_share']:.1f} % of them dead",
        f"unused     {_bytes(found['bytes']['unused'])}; `pipeline gc` removes it once no kept commit names it",
        *(f"{'' if number else 'commits':<10} {line}" for number, line in enumerate(every)),
    ]
    if left := found["unfinished"]:
        done = f"{left['done']:,} of {left['shards']:,} shards"
        if found["running"]:
            lines.append(f"running    a build has done {done}: {found['running']}")
        else:
            lines.append(f"unfinished a build was interrupted after {done}; run it again")
    return lines


@click.command(epilog=EXIT_CODES)
@CACHE
@click.argument("file")
@command
def why(cache: Path, file: str) -> None:
    """Say when a DICOM file was built, from which content, with which settings and versions, into which row.

    FILE is its path under the source, or its last parts. A file that gave no slice is told with the reason.
    """
    from pipeline.upkeep.info import why

    story = why(cache, file)
    say(story.path)
    for name, value in story.facts:
        say(f"  {name:<9} {value}")


@click.command(epilog=EXIT_CODES)
@CACHE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page, one HTML file.")
@command
def report(cache: Path, out: Path) -> None:
    """Write a page that shows a cache: counts, labels, scanners, geometry, rejects, and slices to look at."""
    from pipeline.report.report import write_report

    write_report(cache, out)
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, to be opened in a browser")


@click.command(epilog=EXIT_CODES)
@CACHE
@click.option("--repair", is_flag=True, help="Rebuild what is damaged, and nothing else.")
@click.option("--src", help="The DICOM files, for --repair of images.")
@click.option("--patient-key", type=click.Path(path_type=Path), help="Key file, for --repair of done-records.")
@click.option("--head", "chosen", default="", help="For --repair: the commit to go on from, if which it was is lost.")
@command
def verify(cache: Path, repair: bool, src: str | None, patient_key: Path | None, chosen: str) -> int:
    """Read everything, compare it with what was recorded, and name what is damaged or missing.

    Exit code 1 where something is. With --repair, 0 where all of it is mended. A slice whose file is gone or has
    changed leaves by a new commit and is named. Nothing that is whole is removed: what a repair cannot place is moved
    into .pipeline/aside.
    """
    from tqdm import tqdm

    from pipeline.cache.lock import lock, shared_lock
    from pipeline.upkeep.info import require_cache
    from pipeline.upkeep.verify import examine

    require_cache(cache)
    with lock(cache) if repair else shared_lock(cache) as token:
        with tqdm(unit=" shards", disable=None) as bar:

            def shard_done(shards: int) -> None:
                bar.total = shards
                bar.update(1)

            found = examine(cache, shard_done, chosen if repair else "")
        for damage in found.damages:
            say(f"damaged: {cache / str(damage)}")
        for path in found.unknown:
            say(f"left over: {path}")
        if not repair or not (found.damages or found.unknown):
            return _say_verified(cache, len(found.damages), len(found.records))
        return _repair(found, src, patient_key, str(token))


def _say_verified(cache: Path, damages: int, shards: int) -> int:
    if damages:
        complain(f"{_count(damages, 'damage')}; run: pipeline verify {cache} --repair --src DICOMS")
        return 1
    say(f"{cache}: {_count(shards, 'shard')} read, nothing damaged")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _repair(found: Any, src: str | None, patient_key: Path | None, token: str) -> int:
    from pipeline.source.sources import open_source
    from pipeline.tables import patients
    from pipeline.upkeep.mend import mend
    from pipeline.upkeep.mend_shards import Originals

    has_key = patient_key or patients.default_key_file().exists()
    key = patients.read_key(patient_key) if has_key else None
    done = mend(found, Originals(open_source(src) if src else None, key, token))
    for damage in done.mended:
        say(f"mended: {damage.path}")
    for path, uid, frame in done.lost:
        say(f"lost: {path}: slice {uid}{f', frame {frame}' if frame else ''}: it left by a new commit")
    for commit in done.dropped:
        say(f"dropped: commit {commit}, which named a lost slice")
    for found_at, place in done.aside:
        say(f"moved aside: {found_at} -> {place}")
    for damage in done.left:
        say(f"still damaged: {damage}")
    if done.left:
        complain(f"{_count(len(done.left), 'damage')} left; {done.why_left or 'run the same command again'}")
    return 1 if done.left else 0


@click.command(epilog=EXIT_CODES)
@CACHE
@click.option(
    "--older-than", default="7d", show_default=True, help="Commits that were replaced longer ago may go: 12h, 7d, 2w."
)
@click.option("--yes", is_flag=True, help="Remove it; without it nothing is touched.")
@command
def gc(cache: Path, older_than: str, yes: bool) -> None:
    """Say what no kept commit uses and how large it is; remove it with --yes.

    The current commit is always kept. A training run that reads an older one needs it to be kept.
    """
    from pipeline.cache.lock import lock, shared_lock
    from pipeline.upkeep.gc import find_unused, remove
    from pipeline.upkeep.info import require_head

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", older_than)
    if not match:
        raise click.UsageError(f"--older-than {older_than}: give a number and s, m, h, d or w: 12h, 7d.")
    require_head(cache)
    with lock(cache) if yes else shared_lock(cache):
        unused = find_unused(cache, float(match[1]) * SECONDS[match[2]], time.time())
        what = ", ".join(f"{number:,} {kind}" for kind, number in unused.counts().items())
        if unused.unfinished:
            say(f"kept: {unused.unfinished:,} shards of an interrupted build")
        if not what:
            say(f"{cache}: nothing is unused")
        elif yes:
            remove(cache, unused)
            say(f"{cache}: removed {what}: {_bytes(unused.size)}")
        else:
            say(f"{cache}: unused: {what}: {_bytes(unused.size)}; remove it with --yes")


def _bytes(size: int) -> str:
    value, unit = float(size), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"

"""The body of `report`: a page about a cache."""

from pathlib import Path

from pipeline.cache.paths import Cache
from pipeline.report.report import write_report
from pipeline.terminal import print_line


def report(*, folder: Path, out: Path) -> None:
    """Write a page that shows a cache: counts, labels, scanners, geometry, rejects, and slices to look at."""
    write_report(Cache(folder), out)
    print_line(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")

"""The body of `publish`: the current commit to an address."""

from pathlib import Path

from pipeline.cache.paths import Cache
from pipeline.terminal import print_line
from pipeline.upkeep import publish as publishing


def publish(*, folder: Path, address: str, take_over: bool) -> None:
    """Upload the current commit of a cache, and print how much was sent."""
    done = publishing.publish(Cache(folder), address, take_over=take_over)
    print_line(f"{address}: {done.sent:,} of {done.files:,} files sent, {done.sent_bytes / 1e6:,.1f} MB")

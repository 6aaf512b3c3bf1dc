"""Measure the cost of 750,000 slices before the first is read: planning, the ledger, the labels.

    python benchmarks/plan.py [--files 752803]

The files are simulated by a listing like that of a scan. Memory is the peak of the process.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from frame import machine, peak_mb, timed

from pipeline.cache.ledger import Ledger
from pipeline.cache.paths import Cache
from pipeline.planning import changes, survey
from pipeline.planning.catalog import LabelFile, load
from pipeline.planning.settings import Request, make_settings
from pipeline.source.listing import Listing
from pipeline.tables.labels import read_labels

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
FILE_BYTES = 526_000


class Simulated:
    """A source that has only a listing."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def scan(self) -> Listing:
        return self.listing


def measure(what: str, function: Callable[[], object]) -> None:
    print(f"{what:<44}{timed(function).wall:>7.2f} s{peak_mb():>8,.0f} MB", flush=True)


def label_file(images: list[str]) -> bytes:
    """Return labels in RSNA's long form, six lines per image."""
    lines = (f"{image}_{klass},{(hash(image) >> bit) & 1}\n" for image in images for bit, klass in enumerate(CLASSES))
    return b"ID,Label\n" + "".join(lines).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=752_803)
    count = parser.parse_args().files
    print(machine())
    images = sorted(f"ID_{number * 2654435761 % (1 << 36):09x}" for number in range(count))
    paths, lines = [f"{image}.dcm" for image in images], np.arange(count)
    listing = Listing(paths, np.full(count, FILE_BYTES), lines)
    settings = make_settings(load(None), Request("simulated", "rsna", (224,)), None, "")
    with tempfile.TemporaryDirectory() as root, patch.object(survey, "open_source", lambda src: Simulated(listing)):
        measure("plan of a first build", lambda: survey.survey(Cache(Path(root)), settings))
    shards, slots = (lines // 256).astype(np.int32), (lines % 256).astype(np.int32)
    digests, parts = np.ones((count, 2), np.uint64), np.ones(count, np.int32)
    ledger = Ledger(paths, listing.sizes, listing.mtimes_ns, digests, shards, slots, parts)
    measure("comparison, nothing changed", lambda: changes.compare(listing, ledger))
    touched = Listing(paths, listing.sizes, listing.mtimes_ns + lines % 3 // 2)
    measure("comparison, a third touched", lambda: changes.compare(touched, ledger))
    measure("ledger written and read", lambda: Ledger.decode(ledger.encode()))
    content = label_file(images)
    measure(f"labels of {6 * count:,} lines", lambda: read_labels(LabelFile("rsna_long", "labels"), content, CLASSES))


if __name__ == "__main__":
    main()

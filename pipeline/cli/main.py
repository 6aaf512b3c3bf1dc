"""The `pipeline` command: what each command is called with.

A command's body is imported when it runs, so that help and refused options answer at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.cli.body import EXIT_CODES, command

CACHE = click.argument("folder", metavar="CACHE", type=click.Path(path_type=Path))


@click.group(epilog=EXIT_CODES, context_settings={"max_content_width": 110})
@click.version_option(package_name="ich-cache", prog_name="pipeline")
def main() -> None:
    """Turn head-CT DICOM files into a training cache, once and fast."""


def _build_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `build` and `plan` share: they say what is wanted."""
    options = [
        click.option("--src", help="Folder, zip or tar archive, or address of the DICOM files."),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="The cache, a folder."),
        click.option(
            "--labels", help="Label file, CSV. Default: the one the cache was built with, else the catalog's."
        ),
        click.option("--no-labels", is_flag=True, help="Remove the labels."),
        click.option(
            "--dataset", help="Entry of the catalog. Default: the one the cache was built with, else generic."
        ),
        click.option(
            "--catalog", type=click.Path(path_type=Path), help="Default: ./data_catalog.yaml, else the built-in one."
        ),
        click.option(
            "--size", "sizes", type=int, multiple=True, help="Image side in pixels to build or add; repeatable."
        ),
        click.option("--drop-size", "drop_sizes", type=int, multiple=True, help="Image side to remove; repeatable."),
        click.option("--patient-key", type=click.Path(path_type=Path), help="Key file for hashed patient ids."),
        click.option(
            "--check",
            type=click.Choice(["time", "hash"]),
            default="time",
            show_default=True,
            help="How to tell that a file is unchanged: by size and time, or by content.",
        ),
        click.option(
            "--retry-rejected", is_flag=True, help="Read failed files again, for example after installing a decoder."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@main.command(epilog=EXIT_CODES)
@_build_options
@click.option("--workers", type=click.IntRange(min=0), help="Local processes; 0 builds in this one. Default: cores.")
@click.option("--scheduler", help="Address of a running Dask scheduler, tcp://...")
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="File with a running scheduler's address.")
@click.option("--cluster", type=click.Path(path_type=Path), help="YAML file of a Dask cluster; see docs/cluster.md.")
@click.option(
    "--any-cluster-class", is_flag=True, help="Let --cluster name a class from outside Dask: it runs as code."
)
@click.option(
    "--dashboard", is_flag=True, help="Serve Dask's dashboard of local workers, open to every user of this machine."
)
@click.option(
    "--performance-report", type=click.Path(path_type=Path), help="Write Dask's report of the tasks, an HTML file."
)
@click.option(
    "--max-rejects", default="0", show_default=True, help="Exit with 1 if more files fail than N, or than P%."
)
@click.option("--prune", is_flag=True, help="Remove the slices of files that no longer exist.")
@click.option("--dry-run", is_flag=True, help="Same as `pipeline plan`.")
@command
def build(**options: Any) -> int:
    """Build a cache or bring it up to date: only what changed is run.

    A file that cannot be used becomes a line in rejects.csv and the build goes on.
    """
    from pipeline.cli.bodies.build import build

    return build(**options)


@main.command(epilog=EXIT_CODES)
@command
def attend() -> int:
    """Build what another program asks for on stdin, line by line.

    For programs that build often, such as `train serve`.
    A line is a JSON list of options of `pipeline build`; the answer, on stdout, is a line of JSON: exit_code and said.
    """
    from pipeline.cli.bodies.attend import attend

    return attend(build, sys.stdin, sys.stdout)


@main.command(epilog=EXIT_CODES)
@_build_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command
def plan(**options: Any) -> int:
    """Say what `build` would do, and why, without writing anything.

    It takes the options of `build`. The exit code is 2 if work is pending.
    """
    from pipeline.cli.bodies.build import plan

    return plan(**options)


@main.command()
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder to write dicoms/ and labels.csv to."
)
@click.option("--patients", default=40, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--workers", type=click.IntRange(min=0), help="Processes; 0 for none. [default: one per core]")
@click.option(
    "--bleeding",
    default=5,
    show_default=True,
    type=click.IntRange(0, 10),
    help="Of every ten patients, how many bleed.",
)
@click.option(
    "--faint-edges",
    is_flag=True,
    help="Show a bleed only faintly in its first and last slice: only the neighbours reveal it.",
)
@click.option("--shuffled", is_flag=True, help="Put the slices of a series in random order: neighbours reveal nothing.")
@command
def phantom(**options: Any) -> None:
    """Write synthetic head CT studies with known bleeds.

    They are DICOM files, with labels in the RSNA long format. A patient takes about 17 MB and is the same for any
    number of patients and workers.
    """
    from pipeline.cli.bodies.phantom import write_phantom

    write_phantom(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.argument("address")
@click.option("--take-over", is_flag=True, help="Resume an upload that was killed on another machine.")
@command
def publish(**options: Any) -> None:
    """Upload the current commit of CACHE to ADDRESS.

    Only what differs is sent, to an ADDRESS such as s3://bucket/cache.zarr.
    An address belongs to the cache that was published to it first. Paths of source files are not uploaded.
    """
    from pipeline.cli.bodies.publish import publish

    publish(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option("--digest", "only_digest", is_flag=True, help="Print only the digest of slices, pixels and labels.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command
def info(**options: Any) -> None:
    """Say what a cache holds: commits, settings, counts and sizes.

    Also the share of dead rows. The digest is the same for the same content, whatever the order in which it was built.
    """
    from pipeline.cli.bodies.info import info

    info(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.argument("file")
@command
def why(**options: Any) -> None:
    """Say when and how a DICOM file was built, and into which row.

    It names the content, the settings and the versions that were used.
    FILE is its path under the source, or the end of that path. For a file that gave no slice, the reason is given.
    """
    from pipeline.cli.bodies.info import why

    why(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page, one HTML file.")
@command
def report(**options: Any) -> None:
    """Write a page that shows a cache.

    It has counts, labels, scanners, geometry, rejects, and slices to look at.
    """
    from pipeline.cli.bodies.report import report

    report(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option("--repair", is_flag=True, help="Rebuild what is damaged, and nothing else.")
@click.option("--src", help="The DICOM files, for --repair of images.")
@click.option("--patient-key", type=click.Path(path_type=Path), help="Key file, for --repair of done-records.")
@click.option(
    "--head",
    "chosen",
    default="",
    help="For --repair: the commit to continue from, if it is no longer known which is current.",
)
@command
def verify(**options: Any) -> int:
    """Read everything and name what is damaged or missing.

    What is read is compared with what was recorded.
    The exit code is 1 if anything is damaged; with --repair, 0 if all of it was repaired. A slice whose file is gone or
    has changed is dropped by a new commit and named. Nothing intact is removed: what a repair cannot place is moved
    into .pipeline/aside.
    """
    from pipeline.cli.bodies.verify import verify

    return verify(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option(
    "--older-than",
    default="7d",
    show_default=True,
    help="Remove commits that were replaced longer ago than this: 12h, 7d, 2w.",
)
@click.option("--aside", is_flag=True, help="Include what repairs moved into .pipeline/aside, whatever its age.")
@click.option("--yes", is_flag=True, help="Remove; without this option, only list what is unused.")
@command
def gc(**options: Any) -> None:
    """Say what no kept commit uses; remove it with --yes.

    The current commit is always kept. A training run that reads an older one needs that one kept, too.
    """
    from pipeline.cli.bodies.gc import gc

    gc(**options)

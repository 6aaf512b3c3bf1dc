"""The `pipeline` command: its subcommands and their options.

A command's body is imported only when it runs, so that `--help` and usage errors appear without delay.
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
    """Turn head-CT DICOM files into a training cache."""


def _build_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `build` and `plan` share: they describe the cache to build."""
    options = [
        click.option("--src", help="Folder, zip or tar archive, or URL of the DICOM files."),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the cache."),
        click.option(
            "--labels", help="Label file (CSV). Default: the one the cache was built with, else the catalog's."
        ),
        click.option("--no-labels", is_flag=True, help="Remove the labels."),
        click.option("--dataset", help="Catalog entry. Default: the one the cache was built with, else generic."),
        click.option(
            "--catalog",
            type=click.Path(path_type=Path),
            help="Catalog file. Default: ./data_catalog.yaml, else the built-in one.",
        ),
        click.option(
            "--size", "sizes", type=int, multiple=True, help="Image size in pixels to build or add; repeatable."
        ),
        click.option("--drop-size", "drop_sizes", type=int, multiple=True, help="Image size to remove; repeatable."),
        click.option(
            "--patient-key", type=click.Path(path_type=Path), help="File with the key for hashing patient ids."
        ),
        click.option(
            "--check",
            type=click.Choice(["time", "hash"]),
            default="time",
            show_default=True,
            help="How to detect changed files: by size and modification time, or by content.",
        ),
        click.option(
            "--retry-rejected", is_flag=True, help="Retry files that failed, for example after installing a decoder."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@main.command(epilog=EXIT_CODES)
@_build_options
@click.option(
    "--workers", type=click.IntRange(min=0), help="Local processes; 0 builds in this one. Default: one per core."
)
@click.option("--scheduler", help="Address of a running Dask scheduler (tcp://...).")
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Scheduler file of a running Dask scheduler.")
@click.option(
    "--cluster", type=click.Path(path_type=Path), help="YAML file that describes a Dask cluster; see docs/cluster.md."
)
@click.option(
    "--any-cluster-class", is_flag=True, help="Allow --cluster to name a class from outside Dask; it is run as code."
)
@click.option(
    "--dashboard", is_flag=True, help="Serve the Dask dashboard for local workers, open to every user of this machine."
)
@click.option(
    "--performance-report", type=click.Path(path_type=Path), help="Write Dask's performance report to this HTML file."
)
@click.option(
    "--max-rejects", default="0", show_default=True, help="Exit with code 1 if more than N files, or P% of them, fail."
)
@click.option("--prune", is_flag=True, help="Remove the slices of files that no longer exist.")
@click.option("--dry-run", is_flag=True, help="Do the same as `pipeline plan`.")
@command
def build(**options: Any) -> int:
    """Build a cache, or update it by converting only what changed.

    Files that cannot be used are listed in rejects.csv, and the build continues without them.
    """
    from pipeline.cli.bodies.build import build

    return build(**options)


@main.command(epilog=EXIT_CODES)
@command
def attend() -> int:
    """Run builds requested by another program on stdin, one per line.

    For programs that build often, such as `train serve`.
    Each line is a JSON list of options for `pipeline build`. The reply is one line of JSON on stdout, with the keys
    exit_code and said.
    """
    from pipeline.cli.bodies.attend import attend

    return attend(build, sys.stdin, sys.stdout)


@main.command(epilog=EXIT_CODES)
@_build_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command
def plan(**options: Any) -> int:
    """Show what `build` would do, and why, without writing anything.

    The options are those of `build`. The exit code is 2 if work is pending.
    """
    from pipeline.cli.bodies.build import plan

    return plan(**options)


@main.command()
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder in which to write dicoms/ and labels.csv."
)
@click.option("--patients", default=40, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--workers", type=click.IntRange(min=0), help="Local processes; 0 runs in this one. Default: one per core."
)
@click.option(
    "--bleeding",
    default=5,
    show_default=True,
    type=click.IntRange(0, 10),
    help="How many of every ten patients have a bleed.",
)
@click.option(
    "--faint-edges",
    is_flag=True,
    help="Make a bleed faint in its first and last slice, where only the neighbouring slices reveal it.",
)
@click.option("--shuffled", is_flag=True, help="Shuffle the slices of each series, so that neighbours reveal nothing.")
@command
def phantom(**options: Any) -> None:
    """Write synthetic head CT studies with known bleeds.

    The output is DICOM files, and labels in the RSNA long format. Each patient takes about 17 MB. Patients depend only
    on the seed, not on the number of patients or workers.
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

    ADDRESS is a URL such as s3://bucket/cache.zarr; only what is not there yet is sent.
    An address belongs to the cache that was first published to it. Paths of source files are not uploaded.
    """
    from pipeline.cli.bodies.publish import publish

    publish(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option("--digest", "only_digest", is_flag=True, help="Print only the digest of slices, pixels and labels.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command
def info(**options: Any) -> None:
    """Show what a cache holds: commits, settings, counts and sizes.

    The share of dead rows is shown too. The digest depends only on the content, not on the order in which it was built.
    """
    from pipeline.cli.bodies.info import info

    info(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.argument("file")
@command
def why(**options: Any) -> None:
    """Show when and how a DICOM file was converted, and into which row.

    The content digest, the settings and the versions used are shown as well.
    FILE is the path under the source, or the end of that path. If the file gave no slice, the reason is shown.
    """
    from pipeline.cli.bodies.info import why

    why(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="HTML file to write.")
@command
def report(**options: Any) -> None:
    """Write an HTML report on a cache.

    It shows counts, labels, scanners, geometry, rejects and example slices.
    """
    from pipeline.cli.bodies.report import report

    report(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option("--repair", is_flag=True, help="Rebuild only what is damaged.")
@click.option("--src", help="The DICOM files, needed to repair images.")
@click.option("--patient-key", type=click.Path(path_type=Path), help="Key file, needed to repair done-records.")
@click.option(
    "--head",
    "chosen",
    default="",
    help="With --repair: the commit to continue from, if the current one can no longer be determined.",
)
@command
def verify(**options: Any) -> int:
    """Read everything and report what is damaged or missing.

    All content is compared with the recorded digests.
    The exit code is 1 if anything is damaged; with --repair, 0 if all damage was repaired. A slice whose source file is
    gone or has changed is dropped by a new commit and reported. Nothing intact is removed: files that a repair cannot
    place are moved into .pipeline/aside.
    """
    from pipeline.cli.bodies.verify import verify

    return verify(**options)


@main.command(epilog=EXIT_CODES)
@CACHE
@click.option(
    "--older-than",
    default="7d",
    show_default=True,
    help="Remove commits that were replaced longer ago than this, such as 12h, 7d or 2w.",
)
@click.option("--aside", is_flag=True, help="Include what repairs moved into .pipeline/aside, regardless of age.")
@click.option("--yes", is_flag=True, help="Remove what is unused instead of only listing it.")
@command
def gc(**options: Any) -> None:
    """List what no kept commit uses; remove it with --yes.

    The current commit is always kept. A training run that reads an older commit needs that one kept too.
    """
    from pipeline.cli.bodies.gc import gc

    gc(**options)

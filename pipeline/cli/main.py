"""The `pipeline` command: it reads settings, calls one function and prints its result."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline import system
from pipeline.cli import upkeep as cli_upkeep
from pipeline.cli.body import EXIT_CODES, command
from pipeline.terminal import complain, say, say_json


@click.group(epilog=EXIT_CODES, context_settings={"max_content_width": 110})
@click.version_option(package_name="ich-cache", prog_name="pipeline")
def main() -> None:
    """Turn head-CT DICOM files into a training cache, once and fast."""


for upkeep in (cli_upkeep.info, cli_upkeep.why, cli_upkeep.report, cli_upkeep.verify, cli_upkeep.gc):
    main.add_command(upkeep)


def _build_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `build` and `plan` share: they say what is wanted."""
    options = [
        click.option("--src", help="Folder, zip or tar archive, or address of the DICOM files."),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="The cache, a folder."),
        click.option("--labels", help="Label file, CSV. Default: as the cache was built, else the catalog's."),
        click.option("--no-labels", is_flag=True, help="Take the labels away."),
        click.option("--dataset", help="Entry of the catalog. Default: as the cache was built, else generic."),
        click.option(
            "--catalog", type=click.Path(path_type=Path), help="Default: ./data_catalog.yaml, else the built-in."
        ),
        click.option(
            "--size", "sizes", type=int, multiple=True, help="Image side in pixels to build or add; repeatable."
        ),
        click.option("--drop-size", "drop_sizes", type=int, multiple=True, help="Image side to take away; repeatable."),
        click.option("--patient-key", type=click.Path(path_type=Path), help="Key file for hashed patient ids."),
        click.option(
            "--check",
            type=click.Choice(["time", "hash"]),
            default="time",
            show_default=True,
            help="What says that a file is unchanged: size and time, or its content.",
        ),
        click.option(
            "--retry-rejected", is_flag=True, help="Read failed files again, after installing a decoder, say."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@main.command(epilog=EXIT_CODES)
@_build_options
@click.option("--workers", type=click.IntRange(min=0), help="Local processes; 0 works in this one. Default: cores.")
@click.option("--scheduler", help="Address of a running Dask scheduler, tcp://...")
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="File with a running scheduler's address.")
@click.option(
    "--cluster", type=click.Path(path_type=Path), help="YAML file of a Dask cluster, as docs/cluster.md says."
)
@click.option("--any-cluster-class", is_flag=True, help="Let --cluster name a class that is not Dask's: code to run.")
@click.option("--dashboard", is_flag=True, help="Dask's pages of local workers, open to every user of this machine.")
@click.option("--performance-report", type=click.Path(path_type=Path), help="Dask's report of the tasks, HTML.")
@click.option(
    "--max-rejects", default="0", show_default=True, help="Failed files, N or P%, past which the exit code is 1."
)
@click.option("--prune", is_flag=True, help="Let the slices of files that are gone leave the cache.")
@click.option("--dry-run", is_flag=True, help="As `pipeline plan`.")
@command
def build(
    out: Path,
    workers: int | None,
    scheduler: str | None,
    scheduler_file: Path | None,
    cluster: Path | None,
    any_cluster_class: bool,
    performance_report: Path | None,
    dashboard: bool,
    max_rejects: str,
    prune: bool,
    dry_run: bool,
    **wanted: Any,
) -> int:
    """Build a cache, or bring it up to date: only what has changed runs again.

    A file that cannot be used becomes a line in rejects.csv and the build goes on.
    """
    if dry_run:
        return _show_plan(out, wanted, as_json=False)
    limit = _reject_limit(max_rejects)
    settings, key = _settings(out, **wanted)
    from pipeline.engine.build import Progress, build
    from pipeline.engine.progress import ShownProgress
    from pipeline.planning.settings import Manner

    where = _workers(workers, scheduler, scheduler_file, cluster, performance_report)
    where = replace(where, dashboard=dashboard, any_class=any_cluster_class)
    if dashboard and not where.local:
        raise click.UsageError("--dashboard is for local workers: give --workers 1 or more.")
    with ShownProgress() as shown:
        steps = Progress(shown.planned, shown.note, shown.files_begun, shown.shard_done, shown.stage)
        manner = Manner(key, prune=prune, **_doubts(wanted))
        outcome = build(settings, out, where, manner, steps)
    return _print_outcome(out, outcome, settings.labels.file.filepath is not None, limit)


@main.command(epilog=EXIT_CODES)
@_build_options
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@command
def plan(out: Path, as_json: bool, **wanted: Any) -> int:
    """Say what `build` with the same options would do and why; write nothing."""
    return _show_plan(out, wanted, as_json)


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Gets dicoms/ and labels.csv.")
@click.option("--patients", default=40, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--workers", type=click.IntRange(min=0), help="Processes; 0 for none. [default: one a core]")
@click.option(
    "--bleeding", default=5, show_default=True, type=click.IntRange(0, 10), help="Patients of ten that bleed."
)
@click.option(
    "--faint-edges", is_flag=True, help="Show a bleed barely in its first and last slice: only the neighbours tell."
)
@click.option("--shuffled", is_flag=True, help="Put the slices of a series in random order: no neighbour tells.")
@command
def phantom(
    out: Path, patients: int, seed: int, workers: int | None, *, bleeding: int, faint_edges: bool, shuffled: bool
) -> None:
    """Write synthetic head CT studies with known bleeds, as DICOM files and labels in RSNA's long form.

    A patient is the same for any number of patients and of workers. A patient takes some 17 MB.
    """
    from tqdm import tqdm

    from phantom import study as phantom
    from phantom.errors import PhantomError
    from phantom.planted import make_planted
    from pipeline.errors import SourceError

    processes = min(workers if workers is not None else system.cores(), patients)
    with tqdm(total=patients, unit=" patients", disable=None) as bar:

        def patient_done(number: int) -> None:
            bar.update(1)

        make = partial(make_planted, edges=faint_edges, shuffled=shuffled, bleeding=bleeding)
        try:
            summary = phantom.write(out, patients, seed, patient_done, workers=processes, make=make)
        except PhantomError as error:
            raise SourceError(str(error)) from None
    positive = ", ".join(f"{number:,} {name}" for name, number in summary.positive.items())
    say(f"{out}: {summary.slices:,} slices of {summary.patients:,} patients; with blood: {positive}")


@main.command(epilog=EXIT_CODES)
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("address")
@click.option("--take-over", is_flag=True, help="Go on where a publisher on another machine was killed.")
@command
def publish(cache: Path, address: str, take_over: bool) -> None:
    """Upload the current commit of CACHE to ADDRESS, such as s3://bucket/cache.zarr; only what differs there.

    An address belongs to the cache that was published to it first. No path of a source file goes along.
    """
    from pipeline.upkeep.publish import publish

    done = publish(cache, address, take_over=take_over)
    say(f"{address}: {done.sent:,} of {done.files:,} files sent, {done.sent_bytes / 1e6:,.1f} MB")


def _doubts(wanted: dict[str, Any]) -> dict[str, bool]:
    """What `survey` is to believe, by the options."""
    return {"check_content": wanted["check"] == "hash", "retry_rejected": wanted["retry_rejected"]}


def _show_plan(out: Path, wanted: dict[str, Any], as_json: bool) -> int:
    settings, _ = _settings(out, **wanted)
    from pipeline.cache.lock import builder_at_work
    from pipeline.planning.survey import survey

    made = survey(settings, out, **_doubts(wanted), running=builder_at_work(out)).plan
    if as_json:
        say_json(made.as_json())
    else:
        for line in made.as_lines():
            say(line)
    return 2 if made.commit else 0


def _settings(
    out: Path, catalog: Path | None, patient_key: Path | None, labels: str | None, no_labels: bool, **wanted: Any
) -> tuple[Any, bytes | None]:
    """Options, catalog and what the cache was built with put together: (settings, patient key or None)."""
    from pipeline.library import find_settings
    from pipeline.planning.settings import Request

    if labels and no_labels:
        raise click.UsageError("--labels and --no-labels contradict each other: give one of them.")
    asked = {name: wanted[name] for name in ("src", "dataset", "sizes", "drop_sizes")}
    return find_settings(out, Request(labels=labels, no_labels=no_labels, **asked), catalog, patient_key)


def _workers(
    local: int | None, scheduler: str | None, scheduler_file: Path | None, cluster: Path | None, report: Path | None
) -> Any:
    """Where the tasks run; local processes, one a core, unless an option says otherwise."""
    from pipeline.planning.settings import Workers

    options = (("--workers", local), ("--scheduler", scheduler), ("--scheduler-file", scheduler_file))
    given = [option for option, value in (*options, ("--cluster", cluster)) if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} both say where tasks run: give one of them.")
    if report and local == 0:
        raise click.UsageError("--performance-report is Dask's: give --workers 1 or more.")
    if not given:
        local = system.cores()
    return Workers(local or 0, scheduler, scheduler_file, cluster, report)


def _reject_limit(text: str) -> Callable[[int, int], bool]:
    """`N` or `P%` -> whether so many failed of so many files are too many."""
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        raise click.UsageError(f"--max-rejects {text}: give a number, 10, or a share, 0.5%.") from None
    if text.endswith("%"):
        return lambda failed, files: 100 * failed > share * files
    return lambda failed, files: failed > share


def _print_outcome(out: Path, outcome: Any, labelled: bool, too_many: Callable[[int, int], bool]) -> int:
    attributes = outcome.commit.attributes
    counts = attributes.counts
    kinds = ("duplicates", "not_a_slice", "failed", "not_dicom")
    others = ", ".join(f"{counts[kind]:,} {kind.replace('_', ' ')}" for kind in kinds if counts[kind])
    say(f"{out}: commit {outcome.commit.id}: {attributes.num_slices:,} slices from {counts['files']:,} files")
    if others:
        say(f"without a slice: {others}; see {out / 'rejects.csv'}")
    for name, number in attributes.label_counts.items():
        if number and labelled:
            say(f"labels: {number:,} {name.replace('_', ' ')}")
    if too_many(counts["failed"], counts["files"]):
        complain(f"failed files: {counts['failed']:,}, more than --max-rejects; see {out / 'rejects.csv'}")
        return 1
    return 0

"""The bodies of `build` and `plan`: settings in, one call, what came of it printed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pipeline import system
from pipeline.cache.lock import builder_at_work
from pipeline.cache.paths import Cache
from pipeline.engine.build import Outcome, Progress
from pipeline.engine.build import build as build_cache
from pipeline.engine.progress import ShownProgress
from pipeline.library import find_settings
from pipeline.planning.settings import BuildOptions, Request, Settings, Workers
from pipeline.planning.survey import survey
from pipeline.terminal import print_error, print_json, print_line
from pipeline.words import counted


def build(
    *,
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
    """Build, and return the exit code: 1 where more files failed than may."""
    if dry_run:
        return plan(out=out, as_json=False, **wanted)
    limit = _reject_limit(max_rejects)
    cache = Cache(out)
    settings, key = _settings(cache, **wanted)
    where = _workers(workers, scheduler, scheduler_file, cluster, performance_report)
    where = replace(where, dashboard=dashboard, any_class=any_cluster_class)
    if dashboard and not where.local:
        raise click.UsageError("--dashboard is for local workers: give --workers 1 or more.")
    with ShownProgress(in_process=where.in_process) as shown:
        steps = Progress(shown.planned, shown.note, shown.files_begun, shown.shard_done, shown.stage)
        options = BuildOptions(key, prune=prune, **_survey_arguments(wanted))
        outcome = build_cache(cache, settings=settings, workers=where, options=options, progress=steps)
    _print_outcome(cache, outcome, labelled=settings.labels.file.filepath is not None)
    return _judge_rejects(cache, outcome, limit)


def plan(*, out: Path, as_json: bool, **wanted: Any) -> int:
    """Print the plan, and return the exit code: 2 where a build has something to do."""
    cache = Cache(out)
    settings, _ = _settings(cache, **wanted)
    made = survey(cache, settings, **_survey_arguments(wanted), running=builder_at_work(cache)).plan
    if as_json:
        print_json(made.as_json())
    else:
        for line in made.as_lines():
            print_line(line)
    return 2 if made.commit else 0


def _survey_arguments(wanted: dict[str, Any]) -> dict[str, bool]:
    """Return the arguments of `survey` for the options."""
    return {"check_content": wanted["check"] == "hash", "retry_rejected": wanted["retry_rejected"]}


def _settings(
    cache: Cache, *, catalog: Path | None, patient_key: Path | None, labels: str | None, no_labels: bool, **wanted: Any
) -> tuple[Settings, bytes | None]:
    """Options, catalog and what the cache was built with put together: (settings, patient key or None)."""
    if labels and no_labels:
        raise click.UsageError("--labels and --no-labels contradict each other: give one of them.")
    asked = {name: wanted[name] for name in ("src", "dataset", "sizes", "drop_sizes")}
    return find_settings(cache, Request(labels=labels, no_labels=no_labels, **asked), catalog, patient_key)


def _workers(
    local: int | None, scheduler: str | None, scheduler_file: Path | None, cluster: Path | None, report: Path | None
) -> Workers:
    """Where the tasks run; local processes, one a core, unless an option says otherwise."""
    options = (("--workers", local), ("--scheduler", scheduler), ("--scheduler-file", scheduler_file))
    given = [option for option, value in (*options, ("--cluster", cluster)) if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} both say where tasks run: give one of them.")
    if report and local == 0:
        raise click.UsageError("--performance-report needs Dask: give --workers 1 or more.")
    if not given:
        local = system.cores()
    return Workers(local or 0, scheduler, scheduler_file, cluster, report)


def _reject_limit(text: str) -> Callable[[int, int], bool]:
    """`N` or `P%` -> whether so many failed of so many files are too many."""
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        raise click.UsageError(f"--max-rejects {text}: give a count such as 10, or a share such as 0.5%.") from None
    if text.endswith("%"):
        return lambda failed, files: 100 * failed > share * files
    return lambda failed, files: failed > share


def _print_outcome(cache: Cache, outcome: Outcome, *, labelled: bool) -> None:
    attributes = outcome.commit.attributes
    counts = attributes.counts
    kinds = ("duplicates", "not_a_slice", "failed", "not_dicom")
    others = ", ".join(f"{counts[kind]:,} {kind.replace('_', ' ')}" for kind in kinds if counts[kind])
    slices, files = counted(attributes.num_slices, "slice"), counted(counts["files"], "file")
    print_line(f"{cache}: commit {outcome.commit.id}: {slices} from {files}")
    if others:
        print_line(f"without a slice: {others}; see {cache.rejects_copy}")
    for name, number in attributes.label_counts.items():
        if number and labelled:
            print_line(f"labels: {number:,} {name.replace('_', ' ')}")


def _judge_rejects(cache: Cache, outcome: Outcome, too_many: Callable[[int, int], bool]) -> int:
    counts = outcome.commit.attributes.counts
    if not too_many(counts["failed"], counts["files"]):
        return 0
    print_error(f"failed files: {counts['failed']:,}, more than --max-rejects; see {cache.rejects_copy}")
    return 1

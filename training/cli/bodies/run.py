"""The body of `train run`: train a new run, or resume a stopped one, through to its report."""

import sys
from pathlib import Path
from typing import Any

import click

from training.cli.options import STOPPED
from training.run import config as settings
from training.run import job
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes, join_processes
from training.run.inference import Stopped
from training.run.loggers import parse_loggers
from training.run.presets import PRESETS
from training.run.preview import preview
from training.run.rehearsal import rehearse
from training.run.runs import Run
from training.run.task import Task
from training.scores.evaluation import summary_line
from training.scores.results import read_json


def train(
    *,
    cache: str | None,
    local_copy: Path | None,
    out: Path | None,
    resume: Path | None,
    preset: str | None,
    others: tuple[str, ...],
    checkpoint_every: int,
    keep: int,
    log_every: int,
    loggers: str,
    dry_run: bool,
    device: str,
    input_threads: int,
    **options: Any,
) -> None:
    """Train a model, or resume a run that was stopped."""
    if resume is None and (cache is None or (out is None and not dry_run)):
        raise click.UsageError("give --cache and --out for a new run, or --resume DIR")
    if resume is not None and (out is not None or dry_run or preset is not None):
        raise click.UsageError("--out, --preset and --dry-run cannot be used with --resume")
    overrides = _overrides(preset, options, others)
    trackers = parse_loggers(loggers)
    runtime = Runtime(device, input_threads, Runtime.batches_ahead, checkpoint_every, keep, log_every, trackers)
    if "weights" in overrides:
        overrides["weights"] = job.absolute_weights(overrides["weights"])
    with join_processes(device) as processes:
        if dry_run:
            assert cache is not None
            return _rehearse(cache, settings.new_settings(overrides), runtime, processes, local_copy)
        if resume is not None:
            run, opened = job.resume(resume, cache, overrides, local_copy)
            if changes := job.changed_environment(run, processes):
                click.echo(f"the last bits may differ from an uninterrupted run: {'; '.join(changes)}", err=True)
        else:
            assert cache is not None
            assert out is not None
            run, opened = job.begin(out, cache, settings.new_settings(overrides), processes, local_copy)
            _print(processes, f"weights: {run.environment['weights']}")
        _print(processes, "\n".join(preview(run, opened, processes)))
        try:
            job.complete(Task(run, opened, runtime, processes))
        except Stopped:
            _print(processes, f"stopped; to continue: train run --resume {run.path}", err=True)
            # The other processes have stopped too, so there is nothing left to shut down in order.
            sys.exit(STOPPED)
        if processes.writes:
            _print_scores(run)


def _print_scores(run: Run) -> None:
    for subset in filter(run.has, ("validation", "test")):
        click.echo(summary_line(read_json(run.path / f"scores_{subset}.json"), subset))
    click.echo(str(run.path / "report.html"))


def _print(processes: Processes, *lines: str, err: bool = False) -> None:
    """Print lines from one process only."""
    if processes.writes:
        click.echo("\n".join(lines), err=err)


def _overrides(preset: str | None, options: dict[str, Any], others: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings given on the command line: the preset, overridden by options, overridden by --set."""
    given = {name: value for name, value in options.items() if value is not None}
    return (PRESETS[preset] if preset else {}) | given | dict(settings.parse_setting(text) for text in others)


def _rehearse(cache: str, config: TrainConfig, runtime: Runtime, processes: Processes, local_copy: Path | None) -> None:
    summary = rehearse(cache, config, runtime, processes, local_copy)
    if processes.writes:
        click.echo(summary)

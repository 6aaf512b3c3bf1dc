"""The bodies of `train features` and `train series`: store features, and train a head on them."""

import sys
from pathlib import Path
from typing import Any

import click

from training.cli.options import STOPPED
from training.run import config as settings
from training.run.config import Runtime
from training.run.distributed import join_processes
from training.run.inference import Stopped
from training.run.loggers import parse_loggers
from training.run.task import Task
from training.series import job
from training.series.store import store_path
from training.words import counted


def write_features(
    *, run_path: Path, subsets: tuple[str, ...], tta: bool, cache: str | None, local_copy: Path | None, device: str
) -> None:
    """Write the pooled features and the logits of every slice to RUN/features.zarr, skipping those already there."""
    with join_processes(device) as processes:
        run, opened = job.open_for_features(run_path, cache, local_copy)
        written = job.features(Task(run, opened, Runtime(device), processes), subsets, tta=tta)
        store = store_path(run, tta=tta)
        click.echo(f"{store}: {counted(written, 'slice')} written; the rest were already there")


def train_head(
    *,
    base: Path | None,
    out: Path | None,
    resume: Path | None,
    others: tuple[str, ...],
    cache: str | None,
    local_copy: Path | None,
    loggers: str,
    device: str,
    **options: Any,
) -> None:
    """Train a head over series on the features of a run, or resume one that was stopped."""
    if (resume is None) == (base is None or out is None):
        raise click.UsageError("give --run and --out for a new head, or --resume DIR")
    values = {name: value for name, value in options.items() if value is not None}
    values |= dict(settings.parse_setting(text) for text in others)
    runtime = Runtime(device, loggers=parse_loggers(loggers))
    with join_processes(device) as processes:
        if resume is not None:
            run, of_slices, opened = job.resume(resume, cache, values, local_copy)
        else:
            assert base is not None
            assert out is not None
            run, of_slices, opened = job.begin(out, *job.open_base(base, cache, local_copy), values, processes)
        try:
            scores = job.complete(Task(run, opened, runtime, processes), of_slices)
        except Stopped:
            click.echo(f"stopped; to continue: train series --resume {run.path}", err=True)
            sys.exit(STOPPED)
        click.echo(f"{run.path}: weighted log loss on test {scores['weighted_log_loss']:.4f}")
        click.echo(f"{run.path / 'report.html'}")

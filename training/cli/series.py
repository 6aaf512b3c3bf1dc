"""The commands that look at slices in their series: features, series."""

import sys
from pathlib import Path
from typing import Any

import click

from training.cli.scores import CACHE, FOLDER, STOPPED, local_copy_option
from training.run import config as settings
from training.run.config import Runtime

DEVICE = click.Choice(["auto", "cpu", "cuda"])
SIDES = click.Choice(["train", "validation", "test"])


@click.command("features")
@click.option("--run", "run_path", type=FOLDER, required=True, help="Folder of the slice model's run.")
@click.option("--split", "sides", type=SIDES, multiple=True, help="Only this side; may be given again. [default: all]")
@click.option("--tta", is_flag=True, help="Averaged over mirror images and small rotations, in a store of their own.")
@click.option("--cache", type=CACHE, help="Where the run's cache has moved to.")
@local_copy_option
@click.option("--device", type=DEVICE, default="auto", show_default=True)
def features_command(
    run_path: Path, sides: tuple[str, ...], tta: bool, cache: str | None, local_copy: Path | None, device: str
) -> None:
    """Write the pooled features and the logits of every slice to RUN/features.zarr, once.

    Stopped anywhere, the same command goes on. `train series` reads them.
    """
    from training.run.distributed import join_processes
    from training.run.runs import open_run
    from training.series.features import store_path
    from training.series.job import features

    with join_processes(device) as processes:
        runtime = Runtime(device)
        written = features(run_path, cache, sides, runtime, processes, tta=tta, local_copy=local_copy)
        click.echo(f"{store_path(open_run(run_path), tta=tta)}: {written} slices written, the others were there")


@click.command("series")
@click.option("--run", "base", type=FOLDER, help="Folder of the slice model's run, with features.")
@click.option("--out", type=FOLDER, help="Folder of the new run; must not exist, or be empty.")
@click.option("--resume", type=FOLDER, help="Go on with this run from its last checkpoint, to the same weights.")
@click.option("--head", type=click.Choice(["gru", "transformer"]), help="[default: gru]")
@click.option("--epochs", type=int, help="[default: 20]")
@click.option("--batch-size", type=int, help="Series in a batch. [default: 16]")
@click.option("--lr", "learning_rate", type=float, help="Largest learning rate. [default: 0.001]")
@click.option("--seed", type=int, help="Of the head; the split is the slice model's. [default: the slice model's]")
@click.option(
    "--set",
    "others",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of training/run/config.py, head_features=256 say. May be given again.",
)
@click.option("--cache", type=CACHE, help="Where the slice model's cache has moved to.")
@local_copy_option
@click.option("--device", type=DEVICE, default="auto", show_default=True)
def series_command(
    base: Path | None,
    out: Path | None,
    resume: Path | None,
    others: tuple[str, ...],
    cache: str | None,
    local_copy: Path | None,
    device: str,
    **options: Any,
) -> None:
    """Train a head over each series, on the features of a run, or go on with one that was stopped.

    The head reads a series' slices in order of z and corrects the slice model's logits; by class, validation decides
    how much of the correction counts. The folder is a run like any other: evaluate, predict, compare, report, export.
    """
    if (resume is None) == (base is None or out is None):
        raise click.UsageError("give --run and --out for a new head, or --resume DIR")
    values = {name: value for name, value in options.items() if value is not None}
    values |= dict(settings.parse_setting(text) for text in others)

    from training.run.distributed import join_processes
    from training.run.inference import Stopped
    from training.series import job

    with join_processes(device) as processes:
        if resume is not None:
            run, of_slices, opened = job.resume(resume, cache, values, local_copy)
        else:
            assert base is not None
            assert out is not None
            run, of_slices, opened = job.begin(out, base, cache, values, processes, local_copy)
        try:
            scores = job.complete(run, of_slices, opened, Runtime(device), processes)
        except Stopped:
            click.echo(f"stopped; to go on: train series --resume {run.path}", err=True)
            sys.exit(STOPPED)
        click.echo(f"{run.path}: weighted log loss on test {scores['weighted_log_loss']:.4f}")
        click.echo(f"{run.path / 'report.html'}")


COMMANDS = (features_command, series_command)

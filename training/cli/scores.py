"""The commands that work on finished runs: compare, ablate, report, export."""

from typing import Any

import click

from training.cli.options import CACHE, DEVICE, FILE, FOLDER, local_copy_option, run_option

PREDICTIONS = click.Choice(["test", "validation", "test_tta", "validation_tta"])


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--on", type=PREDICTIONS, default="test", show_default=True, help="Which predictions to compare.")
@click.option("--tta", is_flag=True, help="Also compare each run with itself with TTA.")
@click.option("--every-score", is_flag=True, help="Also print calibration scores and scores at a threshold of 0.5.")
@click.option("--out", type=FILE, help="Write the full table to this CSV file.")
def compare_command(**options: Any) -> None:
    """Compare runs on the same slices.

    Score differences are given with 95 % confidence intervals.
    """
    from training.cli.bodies.compare import compare_runs

    compare_runs(**options)


@click.command("ablate")
@click.option("--cache", type=CACHE, required=True, help="The cache to train from.")
@local_copy_option
@click.option("--out", type=FOLDER, required=True, help="Folder for the runs and the table; finished runs are reused.")
@click.option("--model", "models", multiple=True, default=("resnet50",), show_default=True, help="Repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True, help="Repeatable.")
@click.option("--on", type=click.Choice(["test", "validation"]), default="test", show_default=True)
@click.option(
    "--vary",
    default="position",
    show_default=True,
    metavar="NAMES",
    help="Parts to measure, comma-separated: position, context (one slice on each side), series (a GRU over the "
    "series).",
)
@click.option(
    "--set",
    "others",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting for every run on images, such as epochs=2; repeatable.",
)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
def ablate_command(**options: Any) -> None:
    """Train with and without a part, and measure what it adds.

    The parts are the slice position, the neighbouring slices and a head over the series. Runs with and without each
    are trained for every model and seed, and compared in ablation.csv and ablation.html.
    """
    from training.cli.bodies.ablate import run_ablation

    run_ablation(**options)


@click.command("report")
@run_option
@click.option("--cache", type=CACHE, help="The run's cache, if it has moved.")
@local_copy_option
def report_command(**options: Any) -> None:
    """Rewrite a run's report.html and model_card.md."""
    from training.cli.bodies.report import rewrite_report

    rewrite_report(**options)


@click.command("export")
@run_option
@click.option("--format", "form", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True)
@click.option("--out", type=FILE, help="File to write. [default: model.onnx or model.pt2 in the run's folder]")
@click.option(
    "--cache", type=CACHE, help="The run's cache, if it has moved; the exported model is checked on its first slices."
)
@local_copy_option
def export_command(**options: Any) -> None:
    """Export a run's network to one file, ONNX or torch.export.

    The exported model maps uint8 images and slice positions to probabilities. A head over series is exported together
    with its slice model: it takes all slices of a series, from foot to head, and the distances between them.
    """
    from training.cli.bodies.report import export_run

    export_run(**options)


COMMANDS = (compare_command, ablate_command, report_command, export_command)

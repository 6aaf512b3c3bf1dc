"""The `train` command and the options of its subcommands.

A command's body is imported only when it runs, so that --help is fast: nothing here imports torch, pandas or zarr.
"""

import os
import sys
from pathlib import Path
from typing import Any

import click

from training.cli import scores, series
from training.cli.options import CACHE, FOLDER, local_copy_option, logger_option, run_option, runtime_options
from training.cli.study import serve_command
from training.errors import TrainingError
from training.run.config import Runtime, TrainConfig
from training.run.presets import PRESETS

DEFAULTS = TrainConfig()

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error you can fix (one line says how); 2 wrong usage; 143 stopped by SIGTERM or "
    "Ctrl-C after a checkpoint was written, to be resumed with: train run --resume DIR."
)


# An error must stay readable, but the names in it may be of any length.
MOST_CHARACTERS = 1000


def in_one_line(text: str) -> str:
    """Return a message as one line of bounded length, with control characters escaped: it may quote untrusted names."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1] + "…"


class Group(click.Group):
    """A command group that reports known errors in one line, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TrainingError as error:
            click.echo(f"error: {in_one_line(str(error))}", err=True)
            sys.exit(1)
        except BrokenPipeError:
            raise  # the reader of our output is gone; click exits silently
        except OSError as error:  # a full disk, a read-only mount, a folder of another user
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            reason = error.strerror or str(error)
            click.echo("error: " + in_one_line(f"{where}{reason}; fix this and run the same command again"), err=True)
            sys.exit(1)


@click.group(cls=Group, epilog=EXIT_CODES)
@click.version_option(package_name="ich-cache", prog_name="train")
def main() -> None:
    """Train, evaluate and use a classifier of head-CT slices, on a cache built by `pipeline build`."""


@main.command("run", epilog=EXIT_CODES)
@click.option("--cache", type=CACHE, help="The cache to train from.")
@local_copy_option
@click.option("--out", type=FOLDER, help="Folder of the new run; must not exist, or be empty.")
@click.option("--resume", type=FOLDER, help="Resume this run from its last checkpoint; it ends with the same weights.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="A group of settings, overridden by other options: finetune (the defaults), scratch (no ImageNet weights), "
    "demo (small_resnet, trains in minutes on two cores); see docs/presets.md.",
)
@click.option(
    "--model",
    help="A torchvision classification model, timm:NAME, or your own module:function, which takes the number of "
    f"channels and returns a torch module that maps images to features (B, D). [default: {DEFAULTS.model}]",
)
@click.option("--size", "size_px", type=int, help="Image side in pixels. [default: 380 for efficientnet_b3, else 224]")
@click.option("--weights", help=f"imagenet, none, or a file with a state dict. [default: {DEFAULTS.weights}]")
@click.option("--augment", metavar="MODULE:FUNCTION", help="Your own augmentation; see docs/library.md.")
@click.option("--loss", metavar="MODULE:FUNCTION", help="Your own loss instead of the weighted cross-entropy.")
@click.option("--epochs", type=int, help=f"[default: {DEFAULTS.epochs}]")
@click.option("--batch-size", type=int, help=f"Slices in a batch, over all GPUs. [default: {DEFAULTS.batch_size}]")
@click.option("--lr", "learning_rate", type=float, help=f"Peak learning rate. [default: {DEFAULTS.learning_rate}]")
@click.option("--seed", type=int, help=f"[default: {DEFAULTS.seed}]")
@click.option(
    "--context", type=int, metavar="N", help="Neighbouring slices on each side that the network also sees. [default: 0]"
)
@click.option(
    "--context-windows",
    metavar="NAMES",
    help="Windows of the neighbouring slices: all, or names such as brain,bone. [default: all]",
)
@click.option("--no-position", "position", flag_value=False, default=None, help="Train without the position branch.")
@click.option("--deterministic", flag_value=True, default=None, help="Bit-identical results on GPUs too; slower.")
@click.option("--compile", flag_value=True, default=None, help="Use torch.compile: slow to start, faster GPU steps.")
@click.option(
    "--set",
    "others",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting in training/run/config.py, such as ema_decay=0.999; repeatable.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(0),
    default=Runtime.checkpoint_every,
    metavar="STEPS",
    help="Steps between checkpoints; with 0, only at the end of each epoch.",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=Runtime.keep_checkpoints,
    show_default=True,
    help="Number of most recent checkpoints to keep.",
)
@click.option(
    "--log-every",
    type=click.IntRange(1),
    default=Runtime.log_every,
    show_default=True,
    metavar="STEPS",
    help="Steps between log lines.",
)
@logger_option
@click.option("--dry-run", is_flag=True, help="Try two steps, an evaluation, a save and a reload; keep nothing.")
@runtime_options
def run_command(**options: Any) -> None:
    """Train a model, or resume a run that was stopped.

    When it finishes, the run's folder holds the best weights, predictions and scores for the validation and test sets,
    and report.html. Under torchrun it uses one GPU per process.
    """
    from training.cli.bodies.run import train

    train(**options)


@main.command("evaluate", epilog=EXIT_CODES)
@run_option
@click.option(
    "--split", "subset", type=click.Choice(["validation", "test", "external"]), default="test", show_default=True
)
@click.option("--tta", is_flag=True, help="Average over mirror images and small rotations; adds _tta to file names.")
@click.option("--cache", type=CACHE, help="The run's cache, if it has moved; for --split external, the other cache.")
@local_copy_option
@runtime_options
def evaluate_command(**options: Any) -> None:
    """Score a run's best weights on validation or test slices.

    With --split external, score all labelled slices of another cache. Scoring the validation set also fits the
    thresholds and the calibration used on the other sets. With torchrun, write `-m -- training evaluate`; otherwise
    torchrun takes --run as its own option.
    """
    from training.cli.bodies.evaluate import evaluate

    evaluate(**options)


@main.command("predict", epilog=EXIT_CODES)
@run_option
@click.option("--cache", type=CACHE, help="The cache to predict; it needs no labels.")
@click.option(
    "--dicom",
    "given",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Predict a study instead of a cache: a folder, a zip archive or a DICOM file; repeatable.",
)
@local_copy_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The submission (CSV); OUT_wide.csv and OUT_series.csv are written next to it. With --dicom, the folder for "
    "the results.",
)
@click.option(
    "--sample", type=click.Path(path_type=Path, dir_okay=False), help="A sample submission whose row order to follow."
)
@click.option("--tta", is_flag=True, help="Average over mirror images and small rotations.")
@click.option("--sr", is_flag=True, help="With --dicom: also write a DICOM structured report per study.")
@click.option("--heatmap", is_flag=True, help="With --dicom: add heat maps to the page and as DICOM parametric maps.")
@click.option("--identifiers", is_flag=True, help="With --dicom: include UIDs and file names in the page and the JSON.")
@runtime_options
def predict_command(**options: Any) -> None:
    """Predict every slice of a cache or of a DICOM study.

    The run's best weights are used. The results for a study are a folder: slices.csv, series.csv, studies.csv,
    rejects.csv, answer.json and report.html.
    """
    from training.cli.bodies.predict import predict

    predict(**options)


for command in (*scores.COMMANDS, *series.COMMANDS, serve_command):
    main.add_command(command)

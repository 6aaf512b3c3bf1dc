"""The commands for models over whole series: features, series."""

from typing import Any

import click

from training.cli.options import CACHE, DEVICE, FOLDER, local_copy_option, logger_option

SUBSETS = click.Choice(["train", "validation", "test"])


@click.command("features")
@click.option("--run", "run_path", type=FOLDER, required=True, help="Folder of the slice model's run.")
@click.option(
    "--split", "subsets", type=SUBSETS, multiple=True, help="Only this subset of the split; repeatable. [default: all]"
)
@click.option(
    "--tta", is_flag=True, help="Average features over mirror images and small rotations, in a separate store."
)
@click.option("--cache", type=CACHE, help="The run's cache, if it has moved.")
@local_copy_option
@click.option("--device", type=DEVICE, default="auto", show_default=True)
def features_command(**options: Any) -> None:
    """Write the pooled features and logits of every slice.

    They are written to RUN/features.zarr, for `train series` to read. Slices that already have theirs are skipped, so
    running the command again resumes it.
    """
    from training.cli.bodies.series import write_features

    write_features(**options)


@click.command("series")
@click.option("--run", "base", type=FOLDER, help="Folder of the slice model's run, with features.")
@click.option("--out", type=FOLDER, help="Folder of the new run; must not exist, or be empty.")
@click.option("--resume", type=FOLDER, help="Resume this run from its last checkpoint; it ends with the same weights.")
@click.option("--head", type=click.Choice(["gru", "transformer"]), help="[default: gru]")
@click.option("--loss", metavar="MODULE:FUNCTION", help="Your own loss. [default: the slice model's]")
@click.option("--epochs", type=int, help="[default: 20]")
@click.option("--batch-size", type=int, help="Series in a batch. [default: 16]")
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate. [default: 0.001]")
@click.option("--seed", type=int, help="Seed of the head; the split does not change. [default: the slice model's]")
@click.option(
    "--set",
    "others",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting in training/run/config.py, such as head_features=256; repeatable.",
)
@click.option("--cache", type=CACHE, help="The slice model's cache, if it has moved.")
@local_copy_option
@logger_option
@click.option("--device", type=DEVICE, default="auto", show_default=True)
def series_command(**options: Any) -> None:
    """Train a head over series on a run's features, or resume one.

    The head reads the slices of a series in order of z and corrects the slice model's logits; the weight of its
    correction is fitted on the validation set, per class. The folder is a run like any other: evaluate, predict,
    compare, report and export work on it.
    """
    from training.cli.bodies.series import train_head

    train_head(**options)


COMMANDS = (features_command, series_command)

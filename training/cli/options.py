"""The options and types that several commands share."""

from collections.abc import Callable
from pathlib import Path

import click

from training.run.config import Runtime

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
CACHE = click.Path(file_okay=False)  # stays as it was typed: a Path would spoil an address
DEVICE = click.Choice(["auto", "cpu", "cuda"])
STOPPED = 143
TOKEN_VARIABLE = "TRAIN_SERVE_TOKEN"


def logger_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option of trackers."""
    return click.option(
        "--logger",
        "loggers",
        default=",".join(Runtime.loggers),
        show_default=True,
        metavar="NAMES",
        help="Trackers, comma-separated: tensorboard, csv (always), wandb, mlflow; see docs/library.md.",
    )(command)


def local_copy_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option of local copies of a cache."""
    return click.option(
        "--local-copy",
        type=FOLDER,
        metavar="DIR",
        help="Copy what is read of the cache to this local folder and read it there: for a cache on a network disk or "
        "at an address such as s3://bucket/cache.zarr. Runs may share DIR.",
    )(command)


def run_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option of a run's folder."""
    return click.option("--run", "run_path", type=FOLDER, required=True, help="Folder of the run.")(command)


def runtime_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every command has which computes."""
    for option in (
        click.option(
            "--input-threads",
            type=click.IntRange(0),
            default=Runtime.input_threads,
            show_default=True,
            help="Threads that read and decode.",
        ),
        click.option(
            "--device",
            type=DEVICE,
            default="auto",
            show_default=True,
            help="auto takes a GPU if there is one.",
        ),
    ):
        command = option(command)
    return command

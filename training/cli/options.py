"""Options and parameter types shared by several commands."""

from collections.abc import Callable
from pathlib import Path

import click

from training.run.config import Runtime

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
CACHE = click.Path(file_okay=False)  # a string as typed: a Path would corrupt an address
DEVICE = click.Choice(["auto", "cpu", "cuda"])
STOPPED = 143
TOKEN_VARIABLE = "TRAIN_SERVE_TOKEN"


def logger_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --logger."""
    return click.option(
        "--logger",
        "loggers",
        default=",".join(Runtime.loggers),
        show_default=True,
        metavar="NAMES",
        help="Trackers, comma-separated: tensorboard, csv (always), wandb, mlflow; see docs/library.md.",
    )(command)


def local_copy_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --local-copy."""
    return click.option(
        "--local-copy",
        type=FOLDER,
        metavar="DIR",
        help="Copy the parts of the cache that are read to this local folder and read them there: for a cache on a "
        "network disk or at an address such as s3://bucket/cache.zarr. Runs may share DIR.",
    )(command)


def run_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --run."""
    return click.option("--run", "run_path", type=FOLDER, required=True, help="Folder of the run.")(command)


def runtime_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --device and --input-threads, which all commands that run a model take."""
    for option in (
        click.option(
            "--input-threads",
            type=click.IntRange(0),
            default=Runtime.input_threads,
            show_default=True,
            help="Threads that read and decode slices.",
        ),
        click.option(
            "--device",
            type=DEVICE,
            default="auto",
            show_default=True,
            help="auto uses a GPU if there is one.",
        ),
    ):
        command = option(command)
    return command

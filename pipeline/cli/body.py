"""This file runs a command's body: errors that the user can mend become one line and an exit code."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from pipeline.errors import PipelineError

EXIT_CODES = (
    "Exit codes: 0 done; 1 you can act, one line on stderr says how; 2 wrong usage, or, for `plan`, work pending; "
    "130 interrupted."
)
INTERRUPTED = 130


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Errors that the user can mend become one line and exit code 1; all others keep their traceback."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            code = function(*args, **options)
        except PipelineError as error:
            click.echo(f"error: {error}", err=True)
            code = 1
        except KeyboardInterrupt:
            click.echo("\ninterrupted; what is finished is kept: run the same command to go on", err=True)
            code = INTERRUPTED
        sys.exit(code or 0)

    return run

"""Run a command's body, turning errors that the user can fix into a one-line message and an exit code."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.engine.interrupts import Terminated, ended_by_signals
from pipeline.errors import PipelineError
from pipeline.terminal import print_error, print_status

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error you can fix (one line on stderr says how); 2 wrong usage or, for `plan`, work "
    "pending; 130 interrupted, 143 by SIGTERM, 129 by SIGHUP."
)


def refused_by_system(error: OSError) -> str:
    """Return the message for an error of the operating system: a full disk, a read-only mount, no permission."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing is lost: fix this and run the same command again"


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Print errors that the user can fix as one line and exit with code 1; all others keep their traceback."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            with ended_by_signals():
                code = function(*args, **options)
        except PipelineError as error:
            print_error(str(error))
            code = 1
        except BrokenPipeError:
            raise  # the reader of the output has closed it, and click exits silently
        except OSError as error:
            print_error(refused_by_system(error))
            code = 1
        except KeyboardInterrupt as interrupt:
            print_status("")  # end the line on which the terminal printed ^C
            print_status("interrupted; finished work is kept: run the same command to continue")
            code = 128 + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)
        sys.exit(code or 0)

    return run

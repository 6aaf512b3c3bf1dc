"""Run a command's body: errors that the user can fix become one line and an exit code."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.engine.interrupts import Ended, ended_by_signals
from pipeline.errors import PipelineError
from pipeline.terminal import complain, note

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error you can fix (one line on stderr says how); 2 wrong usage or, for `plan`, work "
    "pending; 130 interrupted, 143 by SIGTERM, 129 by SIGHUP."
)


def refused_by_system(error: OSError) -> str:
    """What to say where the system refuses: a full disk, a read-only mount, a folder of somebody else's."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing is lost: fix this and run the same command again"


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """What the user can fix becomes one line and exit code 1; all other errors keep their traceback."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            with ended_by_signals():
                code = function(*args, **options)
        except PipelineError as error:
            complain(str(error))
            code = 1
        except BrokenPipeError:
            raise  # whoever read the output has gone, and click ends without a word
        except OSError as error:
            complain(refused_by_system(error))
            code = 1
        except KeyboardInterrupt as interrupt:
            note("")  # the line that has ^C on it
            note("interrupted; finished work is kept: run the same command to continue")
            code = 128 + (interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT)
        sys.exit(code or 0)

    return run

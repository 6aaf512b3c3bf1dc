"""Run a command's body: errors that the user can mend become one line and an exit code."""

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.engine.interrupts import Ended, ended_by_signals
from pipeline.errors import PipelineError
from pipeline.terminal import complain, note

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error you can fix, one line on stderr says how; 2 wrong usage, or, for `plan`, work "
    "pending; 130 interrupted, 143 by SIGTERM, 129 by SIGHUP."
)


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Errors that the user can mend become one line and exit code 1; all others keep their traceback."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            with ended_by_signals():
                code = function(*args, **options)
        except PipelineError as error:
            complain(str(error))
            code = 1
        except KeyboardInterrupt as interrupt:
            note("")  # the line that has ^C on it
            note("interrupted; what is finished is kept: run the same command to go on")
            code = 128 + (interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT)
        sys.exit(code or 0)

    return run

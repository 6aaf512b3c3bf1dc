"""Treat Ctrl-C, SIGTERM and SIGHUP alike, and defer them while processes start and end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

from pipeline import system


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C is ending the command.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, unless they are ignored, as under `nohup`.

    Outside the main thread, this does nothing.

    Raises:
        Terminated: one of them arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in system.ending_signals()[1:]}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer Ctrl-C, SIGTERM and SIGHUP to the end of the block; processes started in it never get Ctrl-C or SIGHUP.

    A terminal sends Ctrl-C to all processes, but this one ends the workers, which would only print tracebacks. If Dask
    is interrupted while it starts or ends workers, it leaves some behind and waits 10 s for them.

    Outside the main thread, this does nothing.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Starting multiprocessing's resource tracker unblocks SIGINT in Python 3.11, so it is started before the workers.
    # It ignores SIGINT and SIGTERM; a SIGHUP would end it, and with it what it tracks for the other processes.
    with system.interrupts_blocked():
        resource_tracker.ensure_running()
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: held.append(number)) for number in system.ending_signals()
    }
    try:
        with system.interrupts_blocked():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])  # ignored if the build runs in the background of a shell

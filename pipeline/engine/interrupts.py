"""Make Ctrl-C, SIGTERM and SIGHUP one kind of end, and hold it back while processes start and end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

from pipeline import system


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C has ended the command, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, unless they are ignored, as under `nohup`.

    Raises:
        Ended: one of them came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

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
def interrupts_held() -> Iterator[None]:
    """Put an end by a signal off to the end of the block; threads and processes begun in it get no Ctrl-C or SIGHUP.

    A terminal sends Ctrl-C to all processes: this one ends the workers, and they need not print how it felt. Dask,
    interrupted while it starts or ends them, leaves some behind and waits 10 s for them.

    Raises:
        KeyboardInterrupt: at the end, if there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Python 3.11 unblocks SIGINT in the thread that starts this process, just before it starts the first worker; the
    # process itself ignores SIGINT and SIGTERM, and must not get a SIGHUP, for others would then miss what it knew.
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
        signal.raise_signal(held[0])  # which a build in the background may ignore

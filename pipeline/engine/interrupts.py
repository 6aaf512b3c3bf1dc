"""This file holds Ctrl-C back while processes are started and ended."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

from pipeline.system import interrupts_blocked


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Put an interrupt off to the end of the block; threads and processes that begin in it never get one.

    A terminal sends Ctrl-C to all processes: this one ends the workers, and they need not print how it felt. Dask,
    interrupted while it starts or ends them, leaves some behind and waits 10 s for them.

    Raises:
        KeyboardInterrupt: at the end, if there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Python 3.11 unblocks the signal in the thread that starts this process, just before it starts the first worker.
    resource_tracker.ensure_running()
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        with interrupts_blocked():
            yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)  # which a build in the background may ignore

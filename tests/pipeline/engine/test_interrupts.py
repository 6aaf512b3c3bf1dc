"""Ctrl-C while processes are started: put off, not lost; and no child gets one."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from pipeline.engine.interrupts import interrupts_held


def be_interrupted(then: Callable[[], object]) -> None:
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        then()


def test_an_interrupt_comes_at_the_end_of_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        be_interrupted(lambda: reached.append(True))
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_told_first():
    with pytest.raises(ZeroDivisionError):
        be_interrupted(lambda: 1 / 0)


def test_a_process_that_ignores_interrupts_goes_on():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_child_never_gets_one():
    code = "import signal, time; signal.raise_signal(signal.SIGINT); print('alive')"
    with interrupts_held():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.stdout == "alive\n"

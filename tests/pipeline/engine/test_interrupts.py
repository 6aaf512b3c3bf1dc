"""Signals while processes are started are deferred, not lost, and no child process gets them."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from pipeline.cli.body import command
from pipeline.engine.interrupts import interrupts_deferred


def interrupt_then(then: Callable[[], object]) -> None:
    with interrupts_deferred():
        signal.raise_signal(signal.SIGINT)
        then()


def test_an_interrupt_is_raised_at_the_end_of_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_then(lambda: reached.append(True))
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_takes_precedence():
    with pytest.raises(ZeroDivisionError):
        interrupt_then(lambda: 1 / 0)


def test_a_process_that_ignores_interrupts_continues():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_child_process_never_gets_an_interrupt():
    code = "import signal, time; signal.raise_signal(signal.SIGINT); print('alive')"
    with interrupts_deferred():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.stdout == "alive\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_each_signal_ends_a_command_in_the_same_way(number, code, capsys):
    before, reached = signal.getsignal(number), []

    @command
    def work() -> None:
        with interrupts_deferred():
            signal.raise_signal(number)
            reached.append("end of the block")
        reached.append("after it")

    with pytest.raises(SystemExit) as end:
        work()
    assert end.value.code == code
    assert reached == ["end of the block"]
    assert capsys.readouterr().err.endswith("interrupted; finished work is kept: run the same command to continue\n")
    assert signal.getsignal(number) is before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as end:
            command(lambda: signal.raise_signal(signal.SIGHUP))()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end.value.code == 0

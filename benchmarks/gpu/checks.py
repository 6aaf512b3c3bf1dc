"""Print each check when it is done, and keep all checks in a JSON file."""

import faulthandler
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

LONGEST = 1.5  # limit of a part, as a multiple of its estimate
LATEST_S = 5.0  # after the time limit, if the process hangs while holding the GIL


class OutOfTime(TimeoutError):
    """A part has used up its time."""


@dataclass(frozen=True)
class Check:
    """A figure, its target, and whether the target is met; None if there is no target."""

    part: str
    name: str
    figure: float | str
    unit: str
    wanted: str
    passed: bool | None


@dataclass
class Report:
    """The checks so far.

    Attributes:
        out: a JSON file, rewritten after each check, so that an interrupted run leaves its results.
        facts: description of the machine.
        seconds: time limit. A part is not started if less time than its estimate is left, and is stopped if it takes
            1.5 times its estimate, or at the time limit; in all of these cases it has failed.
        judges_speed: whether rates are compared with targets; not if everything is small.
    """

    out: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = math.inf
    judges_speed: bool = True
    checks: list[Check] = field(default_factory=list)
    finished: bool = False
    _began: float = field(default_factory=time.monotonic)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.passed is False]

    def fact(self, part: str, name: str, figure: float | str, unit: str = "") -> None:
        """Record a figure without a target."""
        self._add(Check(part, name, figure, unit, "", None))

    def holds(self, part: str, name: str, passed: bool, figure: float | str, unit: str = "", wanted: str = "") -> None:
        """Record whether a condition holds."""
        self._add(Check(part, name, figure, unit, wanted, passed))

    def at_least(self, part: str, name: str, figure: float, least: float, unit: str = "") -> None:
        """Record a rate, or a ratio of rates, with a lower limit."""
        self._speed(part, name, figure, unit, f"at least {least:g}", passed=figure >= least)

    def below(self, part: str, name: str, figure: float, most: float, unit: str = "") -> None:
        """Record a share of time with an upper limit."""
        self._speed(part, name, figure, unit, f"below {most:g}", passed=figure < most)

    def do(self, part: str, title: str, estimate_s: float, work: Callable[[], None]) -> None:
        """Run a part; record an exception as a failed check, so that the next part can run."""
        left = self.seconds - (time.monotonic() - self._began)
        if left < estimate_s:
            return self.holds(part, title, False, f"{left:.0f} s left of {self.seconds:.0f}", wanted="measured")
        began = time.monotonic()
        try:
            with time_limit(min(LONGEST * estimate_s, left) if estimate_s else left):
                work()
        except Exception as error:  # report it and go on
            self._raised(part, title, error)
        self.fact(part, f"{title}: time taken", time.monotonic() - began, "s")

    @contextmanager
    def attempt(self, part: str, name: str) -> Iterator[None]:
        """Record an exception as a failed check and go on with the part; OutOfTime ends the part."""
        try:
            yield
        except OutOfTime:
            raise
        except Exception as error:
            self._raised(part, name, error)

    def finish(self) -> None:
        """Record that all parts have been run."""
        self.finished = True
        self._write()

    @contextmanager
    def ends_in_time(self) -> Iterator[None]:
        """End the process at the time limit, even if a part hangs where no signal reaches it.

        If it hangs while holding the GIL, so that no Python thread runs, the process ends some seconds later.
        """

        def end() -> None:
            self.holds("", "everything", False, f"cut off after {self.seconds:.0f} s", wanted="finished")
            os._exit(1)

        if not self.ends:
            yield
            return
        left = max(0.0, self.seconds - (time.monotonic() - self._began))
        watching = threading.Timer(left, end)
        watching.daemon = True
        watching.start()
        faulthandler.dump_traceback_later(left + LATEST_S, exit=True, file=sys.__stderr__)
        try:
            yield
        finally:
            watching.cancel()
            faulthandler.cancel_dump_traceback_later()

    @property
    def ends(self) -> bool:
        return math.isfinite(self.seconds)

    def _raised(self, part: str, name: str, error: Exception) -> None:
        self.holds(part, name, False, " ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _speed(self, part: str, name: str, figure: float, unit: str, wanted: str, *, passed: bool) -> None:
        self._add(Check(part, name, figure, unit, wanted, passed if self.judges_speed else None))

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        click.echo(line_of(check))
        self._write()

    def _write(self) -> None:
        if self.out is not None:
            verdict = {"finished": self.finished, "passed": self.finished and not self.failed}
            content = {"facts": self.facts} | verdict | {"checks": [asdict(one) for one in self.checks]}
            partial = self.out.with_name(f".{self.out.name}.partial")
            partial.write_text(json.dumps(content, indent=2) + "\n")
            partial.replace(self.out)  # so an interrupted run leaves a complete file


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after so many seconds, or at an enclosing limit if that is sooner. For the main thread only."""

    def stop(_: int, __: object) -> None:
        raise OutOfTime(f"cut off after {seconds:.0f} s")

    if not math.isfinite(seconds):
        yield
        return
    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    around, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    if around and around < seconds:
        signal.setitimer(signal.ITIMER_REAL, around)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if around:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, around - (time.monotonic() - began)))


def line_of(check: Check) -> str:
    """Return the line of a check: pass, FAIL or nothing, its part, name, figure and target."""
    verdict = {True: "pass", False: "FAIL", None: ""}[check.passed]
    figure = check.figure if isinstance(check.figure, str) else f"{check.figure:,.4g}"
    if isinstance(check.figure, float) and abs(check.figure) >= 1000:
        figure = f"{check.figure:,.0f}"
    line = f"{verdict:<5}{check.part:<2}{check.name:<62} {figure} {check.unit}".rstrip()
    return f"{line}  ({check.wanted})" if check.wanted else line


@contextmanager
def clocks(report: Report, part: str, title: str) -> Iterator[None]:
    """Record the GPU's clock, power and temperature during a measurement, if nvidia-smi is available."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield
        return
    query = ["--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader,nounits", "-lms", "250"]
    watching = subprocess.Popen([program, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield
    finally:
        watching.terminate()
        output = watching.communicate()[0]
        if (seen := read_clocks(output)) is not None:
            clock, power, warmth = seen
            report.fact(part, f"{title}: clock, power, temperature", f"{clock:.0f} MHz, {power:.0f} W, {warmth:.0f} °C")


def read_clocks(output: str) -> np.ndarray | None:
    """Return the medians of clock (MHz), power (W) and temperature (°C) in nvidia-smi's output; None if it is empty."""
    whole = [line.split(",") for line in output.splitlines(keepends=True) if line.endswith("\n") and "[" not in line]
    values = [[float(word) for word in line] for line in whole if len(line) == 3]
    return np.median(values, axis=0) if values else None

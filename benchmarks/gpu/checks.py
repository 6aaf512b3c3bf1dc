"""Print each check as it is done, and keep all of them in a JSON file."""

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

LONGEST = 1.5  # times its estimate that a part may take
LATEST_S = 5.0  # after the end, for what does not even let it be said


class OutOfTime(TimeoutError):
    """A part has had its time."""


@dataclass(frozen=True)
class Check:
    """One figure, what was wanted of it, and whether it is so; None where nothing was wanted."""

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
        out: a JSON file, written anew after each check, so that a run cut short leaves what it had.
        facts: of the machine.
        seconds: within which all ends. A part of which less than its estimate is left is not begun, one that takes half
            as long again is cut off, and so is whatever is under way at the end; none of these has passed.
        judges_speed: whether rates are held to what is wanted of them; not where everything is small.
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
        """Note a figure of which nothing is wanted."""
        self._add(Check(part, name, figure, unit, "", None))

    def holds(self, part: str, name: str, passed: bool, figure: float | str, unit: str = "", wanted: str = "") -> None:
        """Note whether something is right."""
        self._add(Check(part, name, figure, unit, wanted, passed))

    def at_least(self, part: str, name: str, figure: float, least: float, unit: str = "") -> None:
        """Note a rate, or a ratio of rates, that is to be no lower."""
        self._speed(part, name, figure, unit, f"at least {least:g}", passed=figure >= least)

    def below(self, part: str, name: str, figure: float, most: float, unit: str = "") -> None:
        """Note a share of time that is to be lower."""
        self._speed(part, name, figure, unit, f"below {most:g}", passed=figure < most)

    def do(self, part: str, title: str, estimate_s: float, work: Callable[[], None]) -> None:
        """Do a part; whatever it raises is a check that failed, and the next part follows."""
        left = self.seconds - (time.monotonic() - self._began)
        if left < estimate_s:
            return self.holds(part, title, False, f"{left:.0f} s left of {self.seconds:.0f}", wanted="measured")
        began = time.monotonic()
        try:
            with time_limit(min(LONGEST * estimate_s, left) if estimate_s else left):
                work()
        except Exception as error:  # a benchmark says what went wrong and goes on
            self._raised(part, title, error)
        self.fact(part, f"{title}: time taken", time.monotonic() - began, "s")

    @contextmanager
    def attempt(self, part: str, name: str) -> Iterator[None]:
        """Have what is raised be a check that failed, and go on with the part; OutOfTime ends it."""
        try:
            yield
        except OutOfTime:
            raise
        except Exception as error:
            self._raised(part, name, error)

    def finish(self) -> None:
        """Note that every part has had its turn."""
        self.finished = True
        self._write()

    @contextmanager
    def ends_in_time(self) -> Iterator[None]:
        """End the process when the time is over, whatever it does then: a part may hang where no signal reaches it.

        And where it hangs with the GIL, so that no thread of Python's does either, the process ends some seconds later.
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
            partial.replace(self.out)  # what cuts a run off finds a whole file


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in what takes longer; within another limit the sooner one counts. For the main thread."""

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
    """Return the line of a check: pass, FAIL or nothing, its part, name, figure and what was wanted."""
    verdict = {True: "pass", False: "FAIL", None: ""}[check.passed]
    figure = check.figure if isinstance(check.figure, str) else f"{check.figure:,.4g}"
    if isinstance(check.figure, float) and abs(check.figure) >= 1000:
        figure = f"{check.figure:,.0f}"
    said = f"{verdict:<5}{check.part:<2}{check.name:<62} {figure} {check.unit}".rstrip()
    return f"{said}  ({check.wanted})" if check.wanted else said


@contextmanager
def clocks(report: Report, part: str, title: str) -> Iterator[None]:
    """Note the GPU's clock and power while something is measured, where nvidia-smi tells them."""
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
        said = watching.communicate()[0]
        if (seen := read_clocks(said)) is not None:
            clock, power, warmth = seen
            report.fact(part, f"{title}: clock, power, temperature", f"{clock:.0f} MHz, {power:.0f} W, {warmth:.0f} °C")


def read_clocks(said: str) -> np.ndarray | None:
    """Return the medians of clock (MHz), power (W) and temperature (°C) over what nvidia-smi said; None for nothing."""
    whole = [line.split(",") for line in said.splitlines(keepends=True) if line.endswith("\n") and "[" not in line]
    values = [[float(word) for word in line] for line in whole if len(line) == 3]
    return np.median(values, axis=0) if values else None

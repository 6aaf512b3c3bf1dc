"""Show the progress of a build: a bar on a terminal, otherwise a line every few seconds."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pipeline import terminal
from pipeline.planning.jobs import ShardJob
from pipeline.planning.plan import Plan
from pipeline.source.names import escaped

LINE_EVERY_S = 5.0
# The stages before the first slice: workers take 3 s to start, and code takes half a minute to compile the first time.
STARTING, COMPILING = "starting workers", "compiling"


class ShownProgress:
    """Prints the plan, then the slices done, slices/s, failures and the time left, to stderr.

    Args:
        in_process: whether the tasks run in this process, so that no workers are started.
    """

    def __init__(self, *, in_process: bool = False) -> None:
        self._first_stage = COMPILING if in_process else STARTING
        self._bar: tqdm[Any] | None = None
        self._failed = self._other_files = 0
        self._total = 0
        self._finished = 0
        self._shards: set[int] = set()
        self._begun: dict[int, int] = {}  # unfinished shard -> files
        self._started = self._printed = 0.0
        self._at_start = 0  # slices done when the clock started

    def planned(self, plan: Plan) -> None:
        for line in plan.as_lines():
            terminal.print_status(line)
        self._total = plan.slices_expected
        if self._total and sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total, desc=self._first_stage, unit=" slices", smoothing=0.1, dynamic_ncols=True
            )
        elif self._total:
            terminal.print_status(self._first_stage)

    def files_begun(self, shard: int, files: int) -> None:
        """Count the files begun in an unfinished shard, as a small build has only one or two shards."""
        if shard not in self._shards:
            self._begun[shard] = files - 1
            self._show()

    def shard_done(self, job: ShardJob, result: Any) -> None:
        self._shards.add(job.shard)
        self._begun.pop(job.shard, None)
        self._failed += result.failed
        self._other_files += result.other_files
        self._finished += len(job.units)
        self._show()

    def _show(self) -> None:
        done = self._finished + sum(self._begun.values())
        if not self._started and done:  # the rate does not include starting workers and compiling
            self._started = self._printed = time.monotonic()
            self._at_start = done
        if self._bar is not None:
            self._bar.set_description("" if done else COMPILING, refresh=False)
            self._bar.set_postfix({"failed": self._failed, "other files": self._other_files}, refresh=not done)
            self._bar.update(done - self._bar.n)
        elif self._started and time.monotonic() - self._printed > LINE_EVERY_S:
            self._print_line(done)

    def _print_line(self, done: int) -> None:
        self._printed = time.monotonic()
        rate = (done - self._at_start) / (self._printed - self._started)
        left = max(self._total - done, 0) / max(rate, 1e-9)
        terminal.print_status(
            f"{done:,} of {self._total:,} slices, {rate:,.0f} slices/s, {self._failed:,} failed, "
            f"{self._other_files:,} other files, {tqdm.format_interval(left)} left"
        )

    def note(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        tqdm.write(escaped(line), file=sys.stderr)

    def stage(self, name: str) -> None:
        self._close()
        terminal.print_status(name)

    def _close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._bar.close()
            self._bar = None

    def __enter__(self) -> "ShownProgress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

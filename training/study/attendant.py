"""Keep a `pipeline` running beside the service that builds one study after another: its start costs seconds."""

import contextlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import cast

from training.study.building import Order, begin_build, check_outcome, find_pipeline, finish_build, too_late

GRACE_S = 5.0  # for its end, once nothing more is asked of it


class Attendant:
    """A `pipeline attend`, which is asked for one build at a time; one that has died is started anew."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> "subprocess.Popen[str]":
        """Start the process, unless it runs; it imports what a build needs meanwhile.

        Raises:
            StudyError: the command is not installed.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                (find_pipeline(), "attend"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # Ctrl-C is the service's: it answers what is in hand
            )  # fmt: skip
        return self._process

    def build(self, order: Order, timeout_s: float) -> Path:
        """Have a cache built, and return it.

        A file that kills the decoder kills the process: then the build runs with a worker of its own, whose death
        leaves a line among the rejects.

        Raises:
            StudyError: as `finish_build`.
        """
        deadline = time.monotonic() + timeout_s
        process = self.start()
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            answered = _ask(process, order)
        finally:
            timer.cancel()
        left = deadline - time.monotonic()
        if answered is None:
            self.close()
            if left <= 0:
                raise too_late(order, timeout_s)
            return finish_build(begin_build(order, workers=1), left)
        code, said = answered
        check_outcome(order, code, said)
        return order.cache

    def close(self) -> None:
        """End the process, which ends by itself when nothing more can be asked of it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(OSError):  # of what could not be flushed
            process.stdin.close()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _ask(process: "subprocess.Popen[str]", order: Order) -> tuple[int, str] | None:
    """Ask for one build; return its exit code and what it said, or None where the process died."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps([*order.options, "--workers", "0"]) + "\n")
        process.stdin.flush()
        answered = json.loads(process.stdout.readline())
        return int(answered["exit_code"]), cast(str, answered["said"])
    except (OSError, ValueError):  # an empty line, the end, is no JSON either
        return None

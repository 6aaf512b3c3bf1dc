"""A `pipeline` process that builds one study after another for the service, because starting it takes seconds."""

import contextlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import cast

from training.study.building import Order, begin_build, check_outcome, find_pipeline, finish_build, too_late

GRACE_S = 5.0  # to exit after its input is closed


class PipelineProcess:
    """A `pipeline attend` process that runs one build at a time, and is restarted if it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> "subprocess.Popen[str]":
        """Start the process unless it is running, so that it can import its modules in advance.

        Raises:
            StudyError: if the command is not installed.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                (find_pipeline(), "attend"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # Ctrl-C is for the service, which finishes the current studies
            )  # fmt: skip
        return self._process

    def build(self, order: Order, timeout_s: float) -> Path:
        """Build a cache and return its path.

        A file that crashes the decoder also ends the process. The build is then repeated with a worker process, whose
        crash is recorded as a reject.

        Raises:
            StudyError: if no file has a CT slice, the build fails, or it takes too long.
        """
        deadline = time.monotonic() + timeout_s
        process = self.start()
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            reply = _request(process, order)
        finally:
            timer.cancel()
        left = deadline - time.monotonic()
        if reply is None:
            self.close()
            if left <= 0:
                raise too_late(order, timeout_s)
            return finish_build(begin_build(order, workers=1), left)
        code, output = reply
        check_outcome(order, code, output)
        return order.cache

    def close(self) -> None:
        """End the process by closing its input; kill it if it does not exit."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(OSError):  # from flushing
            process.stdin.close()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _request(process: "subprocess.Popen[str]", order: Order) -> tuple[int, str] | None:
    """Request one build; return its exit code and its output, or None if the process died."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps([*order.options, "--workers", "0"]) + "\n")
        process.stdin.flush()
        reply = json.loads(process.stdout.readline())
        return int(reply["exit_code"]), cast(str, reply["said"])
    except (OSError, ValueError):  # at the end, the line is empty and not JSON
        return None

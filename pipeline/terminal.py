"""Print: the only module that does, so that no name from outside reaches a terminal as it is."""

import contextlib
import json
import sys
from typing import Any, TextIO

from pipeline.source.names import escaped

# An error is one line that a person reads; names in it may be of any length.
MAX_ERROR_CHARACTERS = 1000


def say(line: str) -> None:
    """Print one line of a command's result to stdout."""
    _print(line, sys.stdout)


def say_json(content: Any) -> None:
    """Print plain data for scripts; JSON has escapes of its own for all that is not ASCII."""
    print(json.dumps(content, indent=2))


def say_json_line(content: Any, stream: TextIO) -> None:
    """Print plain data on one line, for a program that reads it as it comes."""
    print(json.dumps(content), file=stream, flush=True)


def note(line: str) -> None:
    """Print one line about the work, not its result, to stderr; a terminal that is gone ends nothing."""
    with contextlib.suppress(OSError):
        _print(line, sys.stderr)


def complain(message: str) -> None:
    """Print an error as one line of bounded length to stderr; a terminal that is gone does not hide the exit code."""
    if len(message) > MAX_ERROR_CHARACTERS:
        message = message[: MAX_ERROR_CHARACTERS - 1] + "…"
    with contextlib.suppress(OSError):
        _print(f"error: {message}", sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    print(escaped(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def in_bytes(size: int) -> str:
    """A size as people read it: 512 bytes, 1.5 GB."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"

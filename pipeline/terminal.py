"""Print to the terminal; only this module does, so that no external name is printed without being escaped."""

import contextlib
import json
import sys
from typing import Any, TextIO

from pipeline.source.names import escaped

# An error is one line for a person to read, but the names in it may be of any length.
MAX_ERROR_CHARACTERS = 1000


def print_line(line: str) -> None:
    """Print one line of a command's result to stdout."""
    _print(line, sys.stdout)


def print_json(content: Any) -> None:
    """Print plain data as JSON for scripts; JSON itself escapes everything that is not ASCII."""
    print(json.dumps(content, indent=2))


def print_json_line(content: Any, stream: TextIO) -> None:
    """Print plain data as one line of JSON, for a program that reads line by line."""
    print(json.dumps(content), file=stream, flush=True)


def print_status(line: str) -> None:
    """Print one line about progress to stderr; a closed terminal does not stop the work."""
    with contextlib.suppress(OSError):
        _print(line, sys.stderr)


def print_error(message: str) -> None:
    """Print an error as one line of bounded length to stderr; a closed terminal does not affect the exit code."""
    if len(message) > MAX_ERROR_CHARACTERS:
        message = message[: MAX_ERROR_CHARACTERS - 1] + "…"
    with contextlib.suppress(OSError):
        _print(f"error: {message}", sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    print(escaped(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def in_bytes(size: int) -> str:
    """Format a size for people: 512 bytes, 1.5 GB."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"

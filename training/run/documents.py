"""Read the JSON files of a run, which may be untrusted: finite numbers and limited nesting only."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from training.system import read_whole


def read_document(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: if it cannot be read, is a pipe or a device, or is larger than any file of a run.
        ValueError: if it is not JSON, has a NaN or an infinite number, or is nested too deeply.
    """
    content = read_whole(file)
    try:
        return json.loads(content, parse_float=_finite, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")

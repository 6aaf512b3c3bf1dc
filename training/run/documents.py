"""Read the JSON of a run, whoever has written it: numbers that are numbers, and nesting that ends."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from training.system import read_whole


def read_document(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read, is a pipe or a device, or is larger than any of a run.
        ValueError: it is not JSON, has a NaN or an infinite number, or is nested too deep.
    """
    content = read_whole(file)
    try:
        return json.loads(content, parse_float=_finite, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of a run")

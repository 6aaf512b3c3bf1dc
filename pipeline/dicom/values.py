"""Read the raw values of elements: text and numbers, each once for all files that have the same."""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, Literal, TypeVar, cast

Values = Mapping[int, bytes]
Function = TypeVar("Function", bound=Callable[..., Any])


def text(raw: bytes) -> str:
    """Decode a value without padding; any byte gives some character, so comparing and hashing always work."""
    return raw.decode("latin-1").strip(" \0")


def uid_or_none(value: str) -> str | None:
    """A UID made of digits and dots, so that it may be quoted; None for what could be anything else."""
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else None


def once_for_equal(*tags: int) -> Callable[[Function], Function]:
    """Have a function of these elements work them out once for all files that have the same, such as a series."""

    def decorate(function: Function) -> Function:
        @lru_cache(maxsize=256)
        def work_out(raws: tuple[bytes | None, ...], *arguments: Any) -> Any:
            return function({tag: raw for tag, raw in zip(tags, raws, strict=True) if raw is not None}, *arguments)

        @wraps(function)
        def look_up(values: Values, *arguments: Any) -> Any:
            return work_out(tuple(map(values.get, tags)), *arguments)

        return cast(Function, look_up)

    return decorate


def integer(values: Values, tag: int, order: Literal["little", "big"]) -> int | None:
    """An unsigned number of 16 bits, None where the element is missing or shorter."""
    raw = values.get(tag, b"")
    return int.from_bytes(raw[:2], order) if len(raw) >= 2 else None


def number_or_none(value: str) -> float | None:
    """A decimal string as a number, None where it is none or not finite."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def numbers_or_none(raw: bytes, count: int) -> tuple[float, ...] | None:
    """So many decimal strings as numbers, None where one is not finite or their count is another."""
    try:
        numbers = tuple(map(float, text(raw).split("\\")))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def count_or_none(raw: bytes) -> int | None:
    """An integer string of 32 bits, None where it is none."""
    number = number_or_none(text(raw)) if raw else None
    return int(number) if number is not None and number == int(number) and abs(number) < 2**31 else None

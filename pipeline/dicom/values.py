"""Convert the raw values of elements to text and numbers, and cache what is derived from them."""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, Literal, TypeVar, cast

Values = Mapping[int, bytes]
Function = TypeVar("Function", bound=Callable[..., Any])


def text(raw: bytes) -> str:
    """Decode a value and strip its padding. Latin-1 maps every byte to a character, so this never fails."""
    return raw.decode("latin-1").strip(" \0")


def uid_or_none(value: str) -> str | None:
    """Return a UID if it consists of digits and dots and can be quoted, else None, as it may be patient data."""
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else None


def cached_by_elements(*tags: int) -> Callable[[Function], Function]:
    """Cache the results of a function of these elements, which often are the same in all files of a series."""

    def decorate(function: Function) -> Function:
        @lru_cache(maxsize=256)
        def cached(raws: tuple[bytes | None, ...], *arguments: Any) -> Any:
            return function({tag: raw for tag, raw in zip(tags, raws, strict=True) if raw is not None}, *arguments)

        @wraps(function)
        def wrapper(values: Values, *arguments: Any) -> Any:
            return cached(tuple(map(values.get, tags)), *arguments)

        return cast(Function, wrapper)

    return decorate


def integer(values: Values, tag: int, order: Literal["little", "big"]) -> int | None:
    """Return an unsigned 16-bit number; None if the element is missing or too short."""
    raw = values.get(tag, b"")
    return int.from_bytes(raw[:2], order) if len(raw) >= 2 else None


def number_or_none(value: str) -> float | None:
    """Parse a decimal string; return None if it is not a finite number."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def numbers_or_none(raw: bytes, count: int) -> tuple[float, ...] | None:
    """Parse `count` decimal strings separated by backslashes; return None unless there are `count` finite numbers."""
    try:
        numbers = tuple(map(float, text(raw).split("\\")))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def count_or_none(raw: bytes) -> int | None:
    """Parse an integer string; return None if it is not an integer of 32 bits."""
    number = number_or_none(text(raw)) if raw else None
    return int(number) if number is not None and number == int(number) and abs(number) < 2**31 else None

"""Convert plain YAML data to frozen dataclasses, and report invalid values with their key."""

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

LARGEST_NUMBER = 10**9


class InvalidError(Exception):
    """A value in the catalog is invalid; the message has its key and the problem."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")


def parse_value(kind: Any, value: Any, key: str) -> Any:
    """Convert plain YAML data to `kind`: a dataclass, tuple, mapping, literal, optional or plain type.

    Raises:
        InvalidError: the value does not fit.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, key)
    if origin is tuple:
        if not isinstance(value, list) or not value:
            raise InvalidError(key, f"must be a list with at least one item, not {short(value)}")
        return tuple(parse_value(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict) or not value:
            raise InvalidError(key, f"must be a mapping, not {short(value)}")
        return {str(k): parse_value(args[1], item, f"{key}.{k}") for k, item in value.items()}
    if origin is Literal:
        if value not in args:
            raise InvalidError(key, f"{short(value)} is unknown{suggest(value, args)}")
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else parse_value(args[0], value, key)
    return _parse_plain(kind, value, key)


def _parse_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise InvalidError(key or "the file", f"must be a mapping, not {short(value)}")
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise InvalidError(f"{prefix}{name}", f"unknown key{suggest(name, hints)}")
    for spec in dataclasses.fields(kind):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in value:
            raise InvalidError(f"{prefix}{spec.name}", "is missing")
    parsed = kind(**{name: parse_value(hints[name], item, f"{prefix}{name}") for name, item in value.items()})
    problem = parsed.problem() if hasattr(parsed, "problem") else None
    if problem:
        raise InvalidError(key, problem)
    return parsed


def _parse_plain(kind: type, value: Any, key: str) -> Any:
    wanted = (int, float) if kind is float else kind
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, wanted):
        word = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        raise InvalidError(key, f"must be {word}, not {short(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidError(key, f"must be finite, not {value!r}")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise InvalidError(key, f"must be at most {LARGEST_NUMBER:,}, not {short(value)}")
    return kind(value)


def suggest(word: str, known: typing.Iterable[str]) -> str:
    """Return `, did you mean X?` or `, choose from A, B`."""
    words = list(known)
    near = difflib.get_close_matches(str(word), words, n=1)
    return f", did you mean {near[0]}?" if near else f", choose from {', '.join(words)}"


def short(value: Any) -> str:
    """Return the repr of a value for a message, shortened if it is long."""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = shortened.maxlong = 60
    shortened.maxlevel = 2
    try:
        return shortened.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return "a number with thousands of digits"

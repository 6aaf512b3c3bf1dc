"""Parse stored JSON into typed values, and refuse values of the wrong type and unknown or missing keys."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
MAX_TEXT = 1 << 16


def parse(kind: type[T], content: Any, where: str = "") -> T:
    """Build a `kind` from plain JSON data, checking every value in it.

    Args:
        kind: a dataclass, named tuple, `tuple`, `Mapping` with text keys, union with None, or plain type. A dataclass
            may have a method `problem` that returns what is wrong with its values, or None.
        where: location of the content in its document, for messages.

    Raises:
        ValueError: the content does not match `kind`; the message names the location.
    """
    return typing.cast(T, _parser(typing.cast(Any, kind))(content, where))


@functools.cache
def _parser(kind: Any) -> Callable[[Any, str], Any]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return functools.partial(_parse_fields, kind, typing.get_type_hints(kind))
    if origin is tuple and args[1:] == (...,):
        return functools.partial(_parse_items, _parser(args[0]))
    if origin is tuple:
        return functools.partial(_parse_line, tuple, args)
    if isinstance(kind, type) and issubclass(kind, tuple):
        return functools.partial(_parse_line, kind._make, tuple(typing.get_type_hints(kind).values()))  # type: ignore[attr-defined]
    if origin is Mapping:
        return functools.partial(_parse_mapping, _parser(args[1]))
    if origin is types.UnionType:
        return functools.partial(_parse_optional, _parser(args[0]))
    return functools.partial(_parse_plain, kind)


def _parse_fields(kind: Any, hints: Mapping[str, Any], content: Any, where: str) -> Any:
    if not isinstance(content, dict) or content.keys() != hints.keys():
        raise ValueError(f"{where or 'the document'} has keys other than {', '.join(hints)}")
    made = kind(**{name: _parser(of)(content[name], f"{where}.{name}".lstrip(".")) for name, of in hints.items()})
    problem = made.problem() if hasattr(made, "problem") else None
    if problem:
        raise ValueError(f"{where}: {problem}")
    return made


def _parse_items(parser: Callable[[Any, str], Any], content: Any, where: str) -> Any:
    _require(isinstance(content, list), "a list", where)
    return tuple(parser(item, where) for item in content)


def _parse_line(make: Callable[[Any], Any], kinds: tuple[Any, ...], content: Any, where: str) -> Any:
    _require(isinstance(content, list) and len(content) == len(kinds), f"a list of {len(kinds)}", where)
    return make(tuple(_parser(kind)(item, where) for kind, item in zip(kinds, content, strict=True)))


def _parse_mapping(parser: Callable[[Any, str], Any], content: Any, where: str) -> Any:
    _require(isinstance(content, dict), "a mapping", where)
    return {key: parser(item, f"{where}.{key}") for key, item in content.items()}


def _parse_optional(parser: Callable[[Any, str], Any], content: Any, where: str) -> Any:
    return None if content is None else parser(content, where)


def _parse_plain(kind: Any, content: Any, where: str) -> Any:
    if kind is float:
        right = type(content) in (int, float) and math.isfinite(content)
    else:
        right = kind is Any or type(content) is kind
    if isinstance(content, str) and len(content) > MAX_TEXT:
        raise ValueError(f"{where} is longer than any text in a cache")
    _require(right, f"of type {getattr(kind, '__name__', kind)}", where)
    return content


def _require(right: object, what: str, where: str) -> None:
    if not right:
        raise ValueError(f"{where or 'the document'} is not {what}")

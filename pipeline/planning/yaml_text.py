"""Read untrusted YAML: its size, depth and number of values are limited."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1 << 20, 40, 100_000


def read_yaml(file: Path) -> Any:
    """Return the content of a YAML file as plain data.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not valid YAML, or exceeds the limits. Aliases count as the values that they expand to, which
            can be billions for a few lines.
    """
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
    try:
        text = data.decode("utf-8-sig")
        _check_depth(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _count_values(node, {})
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError("not valid YAML: not UTF-8 text") from error


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a node with aliases expanded; `known` caches the counts by id of the node."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise ValueError("an alias that contains itself")
        return known[id(node)]
    known[id(node)] = -1
    inner = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    total = 1 + sum(_count_values(part, known) for part in inner)
    if total > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values with aliases expanded")
    known[id(node)] = total
    return total

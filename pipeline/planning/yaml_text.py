"""Read YAML that may have been written by anybody: of bounded size, depth and growth."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1 << 20, 40, 100_000


def read_yaml(file: Path) -> Any:
    """The content of a YAML file as plain data.

    Raises:
        OSError: it cannot be read.
        ValueError: says in one line why it is not YAML of a sane size: text, nesting, or values once its aliases are
            written out, of which a few lines can make billions.
    """
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
    try:
        text = data.decode("utf-8-sig")
        _refuse_deep(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _count(node, {})
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError("not valid YAML: not UTF-8 text") from error


def _refuse_deep(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for with its aliases written out; `known` has the nodes that are done."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise ValueError("an alias that contains itself")
        return known[id(node)]
    known[id(node)] = -1
    inner = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    total = 1 + sum(_count(part, known) for part in inner)
    if total > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values with its aliases written out")
    known[id(node)] = total
    return total

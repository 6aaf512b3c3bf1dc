"""The paths inside a cache have one home."""

import ast
from pathlib import Path

import pipeline
from pipeline.cache import paths

PACKAGE = Path(pipeline.__file__).parent


def joins_of_a_cache(source: str) -> list[str]:
    """Expressions that put a text of their own behind the folder of a cache."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant | ast.JoinedStr)
        and any("cache" in (getattr(part, "id", ""), getattr(part, "attr", "")) for part in ast.walk(node.left))
    ]


def test_only_one_module_knows_where_things_lie_in_a_cache() -> None:
    home = Path(paths.__file__)
    others = {file: joins_of_a_cache(file.read_text("utf-8")) for file in PACKAGE.rglob("*.py") if file != home}
    assert {file.name: found for file, found in others.items() if found} == {}
    assert joins_of_a_cache("cache.root / 'tables'; found.cache.private / f'{name}.csv'; folder / 'x'") == [
        "cache.root / 'tables'",
        "found.cache.private / f'{name}.csv'",
    ]

"""The paths inside a cache are defined in one module."""

import ast
from pathlib import Path

import pipeline
from pipeline.cache import paths

PACKAGE = Path(pipeline.__file__).parent


def joined_paths(source: str) -> list[str]:
    """Return the expressions that append a string to the folder of a cache."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant | ast.JoinedStr)
        and any("cache" in (getattr(part, "id", ""), getattr(part, "attr", "")) for part in ast.walk(node.left))
    ]


def test_only_one_module_defines_paths_inside_a_cache() -> None:
    home = Path(paths.__file__)
    others = {file: joined_paths(file.read_text("utf-8")) for file in PACKAGE.rglob("*.py") if file != home}
    assert {file.name: found for file, found in others.items() if found} == {}
    assert joined_paths("cache.root / 'tables'; found.cache.private / f'{name}.csv'; folder / 'x'") == [
        "cache.root / 'tables'",
        "found.cache.private / f'{name}.csv'",
    ]

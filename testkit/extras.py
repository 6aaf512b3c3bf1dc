"""Test the advice to install an extra, by checking that the extra installs the missing package."""

import re
import tomllib
from functools import cache
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@cache
def _extras() -> dict[str, set[str]]:
    lists = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    return {extra: {re.split(r"[^\w-]", line)[0].lower() for line in lines} for extra, lines in lists.items()}


def assert_installs(extra: str, package: str) -> None:
    """Assert that an extra of this project installs a package."""
    assert package in _extras()[extra], f"{extra} installs {sorted(_extras()[extra])}"

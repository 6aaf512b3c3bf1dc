"""Test the diffs in docs/changes.md: each applies to the current tree, touches only the files it names, and works."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("pipeline", "training", "phantom", "testkit", "data_catalog.yaml", "docs/cache_format.md")
SECTION = re.compile(
    r"^## (?P<title>.+?)\n.*?^Files: (?P<files>.+?)\n"
    r".*?^```diff\n(?P<diff>.+?)^```\n.*?^```python\n(?P<check>.+?)^```\n",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Change:
    """A section of docs/changes.md."""

    title: str
    files: frozenset[str]
    diff: str
    check: str


def changes() -> list[Change]:
    page = (ROOT / "docs" / "changes.md").read_text(encoding="utf-8")
    found = [
        Change(match["title"], frozenset(re.findall(r"`(.+?)`", match["files"])), match["diff"], match["check"])
        for match in SECTION.finditer(page)
    ]
    assert len(found) == page.count("\n## ") == 8
    return found


def apply(diff: str, folder: Path, *how: str) -> None:
    done = subprocess.run(
        ["git", "apply", *how, "-"], input=diff, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with all changes applied."""
    folder = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)  # with compiled kernels, to save seconds
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for change in changes():
        apply(change.diff, folder, "--check")
        apply(change.diff, folder)
    return folder


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.title)
def test_a_change_applies_alone_and_touches_only_the_files_it_names(change: Change) -> None:
    apply(change.diff, ROOT, "--check")
    touched = set(re.findall(r"^\+\+\+ b/(.+)$", change.diff, re.MULTILINE))
    assert touched == change.files


@pytest.mark.parametrize("package", ["pipeline", "training"])
def test_the_changes_work(copy: Path, package: str) -> None:
    of_pipeline = {"A window", "A label format", "A kind of cluster", "A column of metadata.csv"}
    checks = [change.check for change in changes() if (change.title in of_pipeline) == (package == "pipeline")]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(checks)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

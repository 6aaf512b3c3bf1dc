"""Check that the HTML pages of both packages look alike, and that the Markdown pages name existing files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
OUTPUTS = {"site/"}  # folders that commands write


def test_both_packages_have_the_same_stylesheet_and_page():
    for name in ("style.css", "page.html"):
        first, second = (ROOT / package / "report/templates" / name for package in ("pipeline", "training"))
        assert first.read_bytes() == second.read_bytes()


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MkDocs generate for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_existing_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_tree_in_the_readme_is_complete():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"^## Where things are\n\n```\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    assert tree is not None
    package, named = "", set()
    for line in tree[1].splitlines():
        names = re.findall(r"(?:^| )(?:  )?([a-z_]+(?:/|\.yaml))(?= |$)", line[:25])
        assert names, line
        if not line.startswith(" "):
            package = names[0]
            named |= set(names)
        else:
            named |= {package + name for name in names}
    assert not [name for name in named if not (ROOT / name).exists()]
    folders = {f"{name}/{path.name}/" for name in ("pipeline", "training") for path in (ROOT / name).iterdir()}
    assert {folder for folder in folders if (ROOT / folder / "__init__.py").exists()} <= named


def test_the_pages_name_modules_that_exist():
    """Paths start at the root, at a package, or at a folder named earlier in the paragraph."""
    for page in ("README.md", "CONTRIBUTING.md", "docs/data_flow.md"):
        for paragraph in re.split(r"\n\n|\n(?=\d\. |\|)", (ROOT / page).read_text(encoding="utf-8")):
            folders = {ROOT, ROOT / "pipeline", ROOT / "training"}
            for name in re.findall(r"`([a-z_/]+(?:/|\.py))`", paragraph):
                found = [folder / name for folder in folders if (folder / name).exists()]
                assert found or name in OUTPUTS, f"{page}: {name}"
                folders |= {path if path.is_dir() else path.parent for path in found}

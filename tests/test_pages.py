"""Check that the pages of both packages look alike."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_both_packages_have_the_same_stylesheet_and_page():
    for name in ("style.css", "page.html"):
        first, second = (ROOT / package / "report/templates" / name for package in ("pipeline", "training"))
        assert first.read_bytes() == second.read_bytes()

"""Test the report in a real browser: no broken images or links, and nothing too wide at 400 and 1400 px."""

import pytest

from testkit.chromium import BROKEN, CHROMIUM, PAGE_WIDTH, measured, sticking_out
from testkit.fake_cache import write_cache
from testkit.fake_run import write_run
from training.data.cache import open_cache
from training.report.report import write_report

WIDTHS = (400, 1400)
MEASURES = {
    "sections": '(page) => page.querySelectorAll("section").length',
    "images": "(page) => page.images.length",
    "broken": BROKEN,
    "unnamed": "(page) => [...page.images].filter((image) => !image.alt).length",
    "width": PAGE_WIDTH,
    "sticking_out": sticking_out("figure, .card, .panels img, h1, h2, p"),
    "dead_links": """(page) => [...page.querySelectorAll("nav a")]
      .filter((a) => !page.querySelector(a.getAttribute("href"))).length""",
}


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium")
def test_the_report_renders(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("browser")
    cache = open_cache(write_cache(path / "cache.zarr", patients=24, slices=5).path)
    write_run(path / "run", cache)
    write_report(path / "run", cache)
    seen = measured(path / "run" / "report.html", WIDTHS, MEASURES, tmp_path_factory.mktemp("profile"))
    assert tuple(seen) == WIDTHS
    for width, of in seen.items():
        assert of["sections"] == 12
        assert of["images"] > 40
        assert (of["broken"], of["unnamed"], of["dead_links"]) == (0, 0, 0)
        assert of["width"] <= width
        assert of["sticking_out"] == 0

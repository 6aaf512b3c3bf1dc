"""The report of a cache in a real browser has no broken images, and nothing too wide at 400 and 1400 px."""

import pytest

from testkit.chromium import BROKEN, CHROMIUM, PAGE_WIDTH, measured, sticking_out
from testkit.report_source import write_source
from testkit.small import Small, run

WIDTHS = (400, 1400)
MEASURES = {
    "sections": '(page) => page.querySelectorAll("section").length',
    "images": "(page) => page.images.length",
    "broken": BROKEN,
    "width": PAGE_WIDTH,
    "sticking_out": sticking_out("figure, .card, .chart, .tile, h1, h2, p, figcaption, img, svg"),
    "outside_their_chart": """(page) => [...page.querySelectorAll("svg text")].filter((text) => {
      const [own, whole] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
      return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
    }).length""",
}


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium")
def test_the_report_is_rendered_at_all_widths(tmp_path_factory: pytest.TempPathFactory) -> None:
    small = Small(tmp_path_factory.mktemp("browser"), sizes=(8, 12), rows=4)
    small.labels = write_source(small.src)
    small.build("--max-rejects", 100)
    report = small.folder / "report.html"
    run("report", small.out, "--out", report)
    seen = measured(report, WIDTHS, MEASURES, tmp_path_factory.mktemp("profile"))
    assert tuple(seen) == WIDTHS
    for width, of in seen.items():
        assert of["sections"] == 8
        assert of["images"] > 12
        assert of["width"] <= width
        assert (of["broken"], of["sticking_out"], of["outside_their_chart"]) == (0, 0, 0)

"""Open the report of a cache in a real browser: no broken picture, nothing too wide at 400 and 1400 px."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from testkit.small import Small, run
from tests.pipeline.report.test_report import write_source

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--allow-file-access-from-files", "--enable-logging=stderr",
]  # fmt: skip
# A window cannot be as narrow as a telephone, a frame can.
FRAME = """<!DOCTYPE html><html><body>
<iframe id="f" src="report.html" style="width: {width}px; height: 3000px; border: 0"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const page = frame.contentDocument;
  const images = [...page.images];
  const parts = [...page.querySelectorAll("figure, .card, .chart, .tile, h1, h2, p, figcaption, img, svg")];
  document.getElementById("found").textContent = JSON.stringify({{
    sections: page.querySelectorAll("section").length,
    images: images.length,
    broken: images.filter((image) => !image.complete || image.naturalWidth === 0).length,
    width: page.documentElement.scrollWidth,
    sticking_out: parts.filter((part) => part.getBoundingClientRect().right > {width} + 0.5).length,
    outside_their_chart: [...page.querySelectorAll("svg text")].filter((text) => {{
      const [own, whole] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
      return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
    }}).length,
  }});
}};
</script></body></html>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = Small(tmp_path_factory.mktemp("browser"), sizes=(8, 12), rows=4)
    small.labels = write_source(small.src)
    small.build("--max-rejects", 100)
    run("report", small.out, "--out", small.folder / "report.html")
    return small.folder


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_renders(folder: Path, width: int, tmp_path: Path) -> None:
    frame = folder / f"frame{width}.html"
    frame.write_text(FRAME.format(width=width))
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=180, check=True)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert "CONSOLE" not in done.stderr
    assert seen["sections"] == 8
    assert seen["images"] > 12
    assert seen["width"] <= width
    assert (seen["broken"], seen["sticking_out"], seen["outside_their_chart"]) == (0, 0, 0)

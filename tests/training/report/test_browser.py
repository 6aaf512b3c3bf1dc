"""Open the report in a real browser: no error, no broken picture, nothing too wide at 400 and 1400 px."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from testkit.fake_cache import write_cache
from testkit.fake_run import write_run
from training.data.cache import open_cache
from training.report.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--allow-file-access-from-files", "--enable-logging=stderr",
]  # fmt: skip
# A window cannot be as narrow as a telephone, a frame can.
FRAME = """<!DOCTYPE html><html><body>
<iframe id="f" src="run/report.html" style="width: {width}px; height: 3000px; border: 0"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const page = frame.contentDocument;
  const images = [...page.images];
  const narrow = [...page.querySelectorAll("figure, .card, .panels img, h1, h2, p")];
  document.getElementById("found").textContent = JSON.stringify({{
    title: page.title,
    sections: page.querySelectorAll("section").length,
    images: images.length,
    broken: images.filter((image) => !image.complete || image.naturalWidth === 0).length,
    unnamed: images.filter((image) => !image.alt).length,
    width: page.documentElement.scrollWidth,
    sticking_out: narrow.filter((part) => part.getBoundingClientRect().right > {width} + 0.5).length,
    dead_links: [...page.querySelectorAll("nav a")].filter((a) => !page.querySelector(a.getAttribute("href"))).length,
  }});
}};
</script></body></html>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser")
    cache = open_cache(write_cache(path / "cache.zarr", patients=24, slices=5).path)
    write_run(path / "run", cache)
    write_report(path / "run", cache)
    return path


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_renders(folder: Path, width: int, tmp_path: Path) -> None:
    (folder / f"frame{width}.html").write_text(FRAME.format(width=width))
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"]
    address = (folder / f"frame{width}.html").as_uri()
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=180, env=os.environ, check=True)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert "CONSOLE" not in done.stderr
    assert seen["sections"] == 12
    assert seen["images"] > 40
    assert (seen["broken"], seen["unnamed"], seen["dead_links"]) == (0, 0, 0)
    assert seen["width"] <= width
    assert seen["sticking_out"] == 0

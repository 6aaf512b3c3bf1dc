"""Find Chromium, and measure a page in frames of several widths, as a window cannot be as narrow as a phone."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync",
)  # fmt: skip
DUMP = ("--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom")
FRAMES = """<!DOCTYPE html><html><body><pre id="found"></pre><script>
const measures = {{{measures}}}, seen = {{}};
for (const width of {widths}) {{
  const frame = document.createElement("iframe");
  frame.style = `width: ${{width}}px; height: 3000px; border: 0`;
  frame.onload = () => {{
    const entries = Object.entries(measures);
    seen[width] = Object.fromEntries(entries.map(([name, of]) => [name, of(frame.contentDocument, width)]));
    document.getElementById("found").textContent = JSON.stringify(seen);
  }};
  frame.src = "{address}";
  document.body.append(frame);
}}
</script></body></html>
"""
BROKEN = "(page) => [...page.images].filter((image) => !image.complete || image.naturalWidth === 0).length"
PAGE_WIDTH = "(page) => page.documentElement.scrollWidth"


def sticking_out(parts: str) -> str:
    """Return JavaScript that counts the elements of a CSS selector that extend beyond the right edge."""
    beyond = "(part) => part.getBoundingClientRect().right > width + 0.5"
    return f'(page, width) => [...page.querySelectorAll("{parts}")].filter({beyond}).length'


def measured(
    page: Path, widths: Sequence[int], measures: Mapping[str, str], profile: Path
) -> dict[int, dict[str, Any]]:
    """Open a page in a frame of each width, and evaluate measures in each.

    Args:
        page: an HTML file; the page with the frames is written next to it.
        widths: CSS pixels.
        measures: name -> JavaScript function of the page's document and the width.
        profile: a folder for the browser's profile.

    Returns:
        width -> name -> value.
    """
    frames = page.with_name("frames.html")
    functions = ", ".join(f"{name}: {of}" for name, of in measures.items())
    frames.write_text(FRAMES.format(measures=functions, widths=list(widths), address=page.name))
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *DUMP, frames.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    return {int(width): of for width, of in json.loads(html.unescape(found[1])).items()}

"""Test the page of an answer in a real browser: it fits, needs no network, and its keys work."""

import asyncio
from pathlib import Path

import pytest

from testkit.browser import Page, browse
from testkit.chromium import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium")

SEEN = """({
  title: document.querySelector("h1").textContent,
  width: document.documentElement.scrollWidth,
  broken: [...document.images].filter((i) => i.src && !(i.complete && i.naturalWidth)).length,
  series: document.querySelectorAll("article").length,
  slices: document.querySelectorAll(".slice").length,
  sticking_out: [...document.querySelectorAll("h1, h2, h3, p, figure, .strip-scroll")]
    .filter((part) => part.getBoundingClientRect().right > innerWidth + 0.5).length,
})"""
VIEWER = """({
  open: document.getElementById("viewer").open,
  title: document.querySelector("#viewer h2").textContent,
  window: document.querySelector("[data-window][aria-pressed=true]")?.textContent,
  heat: !document.querySelector(".stage .heat").hidden,
  side: document.querySelector(".stage .picture").getBoundingClientRect().width,
  natural: document.querySelector(".stage .picture").naturalWidth,
  cut: [...document.querySelectorAll(".viewer *")].filter((part) => part.checkVisibility() &&
    part.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).length,
})"""


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_and_its_keys(answered, width: int, tmp_path: Path) -> None:
    async def visit(page: Page) -> None:
        await page.open((answered.out / "report.html").as_uri(), width)
        seen = await page.evaluate(SEEN)
        assert seen["title"] == "5 studies answered"
        assert (seen["broken"], seen["sticking_out"]) == (0, 0)
        assert seen["width"] <= width
        assert seen["slices"] == 28 + 7 + 4 + 3
        await keys(page, width)
        assert page.errors == []
        assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []

    browse(tmp_path, visit)


async def keys(page: Page, width: int) -> None:
    await page.evaluate("[...document.querySelectorAll('.slices')].find((of) => of.children.length == 28)"
                    ".children[3].focus()")  # fmt: skip
    await page.press("ArrowRight")
    assert not (await page.evaluate(VIEWER))["open"]
    await page.press("Enter")
    seen = await page.evaluate(VIEWER)
    assert seen["open"]
    assert seen["title"].endswith("slice 5 of 28")
    assert seen["window"] == "brain"
    assert seen["side"] >= (512 if width > 512 else width - 32)
    assert seen["cut"] == 0
    assert seen["natural"] == 32  # the size in the cache
    for key, name, value in (
        ("ArrowUp", "title", "slice 6 of 28"), ("ArrowDown", "title", "slice 5 of 28"),
        ("End", "title", "slice 28 of 28"), ("ArrowRight", "title", "slice 28 of 28"),
        ("Home", "title", "slice 1 of 28"), ("w", "window", "subdural"), ("3", "window", "bone"),
        ("w", "window", "brain"), ("h", "heat", True), ("h", "heat", False), ("Escape", "open", False),
    ):  # fmt: skip
        await page.press(key)
        await asyncio.sleep(0.05)
        found = (await page.evaluate(VIEWER))[name]
        assert str(found).endswith(str(value)), (key, found)

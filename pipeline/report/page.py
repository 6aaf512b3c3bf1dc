"""Set text, tables, charts and pictures into one HTML page that needs nothing else.

How a block looks stands in templates/; here is what it shows.
"""

import base64
import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 8, 44


class Section(NamedTuple):
    """A part of the page with a heading, which the contents line names."""

    title: str
    blocks: Sequence[str]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


class Share(NamedTuple):
    """A cell of a table that shows `part` of `whole`, as a bar and in percent."""

    part: int
    whole: int

    @property
    def percent(self) -> float:
        return 100 * self.part / self.whole


Row = list[str | Share]


class Picture(NamedTuple):
    """One picture of a card: PNG, what it shows, and two lines beneath it."""

    png: bytes
    words: str
    first: str
    second: str


class Bar(NamedTuple):
    """A bar of a chart, in the picture's units, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    words: str


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("pipeline.report")
    templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return templates


def _block(name: str, *values: object) -> str:
    return str(getattr(_templates().get_template("blocks.html").module, name)(*values))


def page(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """Return the HTML document."""
    template = _templates().get_template("page.html")
    return template.render(title=title, head=[paragraph(lead, "lead")], sections=sections, foot=paragraph(foot))


def paragraph(text: str, kind: str = "text") -> str:
    """Return a paragraph of text; what stands in backticks is code. `kind`: text, lead or notice."""
    return _block("paragraph", [(part, odd % 2 == 1) for odd, part in enumerate(re.split("`(.+?)`", text))], kind)


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Return the row of key numbers, each a value and what it is."""
    return _block("tiles", numbers)


def table(caption: str, head: Sequence[str], rows: Sequence[Row], texts: Sequence[int] = ()) -> str:
    """Return a table whose first column names the row.

    Args:
        rows: text cells may hold small lines after a newline.
        texts: columns of long text, set to the left.
    """
    return _block("table", caption, head, rows, texts)


def tables(items: Sequence[str]) -> str:
    """Return tables that stand side by side where there is room."""
    return _block("group", "tables", items)


def chart(title: str, edges: np.ndarray, heights: np.ndarray, x_label: str, unit: str = "") -> str:
    """Return bars over an axis, as a vector picture.

    Args:
        edges: (n + 1,) float, of the bars.
        heights: (n,) 0 or more; NaN leaves a bar out.
        unit: after the numbers of the upright axis.
    """
    heights = np.nan_to_num(np.asarray(heights, float))
    top = float(heights.max(initial=0)) or 1.0
    counts = bool((heights == heights.round()).all())
    low, high = float(edges[0]), float(edges[-1])

    def x(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM), 1)

    bars = [
        Bar(
            round(x(left) + 0.5, 1),
            y(height),
            round(max(x(right) - x(left) - 1, 1), 1),
            round(y(0) - y(height), 1),
            f"{left:g} to {right:g}: {height:,.4g}{unit}",
        )
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True)
        if height > 0
    ]
    x_ticks = [(x(at), f"{at:g}") for at in ticks(low, high, 7)]
    y_ticks = [(y(at), f"{at:,g}{unit}") for at in ticks(0, top, 4) if not counts or at.is_integer()]
    return _block("chart", title, WIDTH, HEIGHT, (LEFT, WIDTH - RIGHT), y(0), bars, x_ticks, y_ticks, x_label)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, in steps of 1, 2 or 5 times a power of ten, at most `most` steps."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [round(float(step * n), 10) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def charts(items: Sequence[str], caption: str) -> str:
    """Return a figure of charts with one caption."""
    return _block("figure", "charts", items, caption)


def card(pictures: Sequence[Picture], name: str) -> str:
    """Return pictures side by side, at most three, each with its lines beneath, and what they belong to."""
    return _block("card", pictures, name)


def cards(items: Sequence[str], caption: str) -> str:
    """Return a sheet of cards with one caption."""
    return _block("figure", "cards", items, caption)

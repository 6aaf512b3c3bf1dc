"""Render text, tables, charts and pictures as one self-contained HTML page, with the templates in templates/."""

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
    """A section of the page, with a heading that is also in the navigation."""

    title: str
    blocks: Sequence[str]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


class Share(NamedTuple):
    """A table cell that shows `part` / `whole` as a bar and in percent."""

    part: int
    whole: int

    @property
    def percent(self) -> float:
        return 100 * self.part / self.whole


Row = list[str | Share]


class Picture(NamedTuple):
    """A picture of a card.

    Attributes:
        png: the image.
        words: description of the image.
        first, second: the two lines below it.
    """

    png: bytes
    words: str
    first: str
    second: str


class Bar(NamedTuple):
    """A bar of a chart, in SVG units, with its tooltip."""

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
    """Return the HTML document.

    Args:
        title: of the page.
        lead: text below the title.
        sections: of the page.
        foot: text at the end.
    """
    template = _templates().get_template("page.html")
    return template.render(title=title, head=[paragraph(lead, "lead")], sections=sections, foot=paragraph(foot))


def paragraph(text: str, kind: str = "text") -> str:
    """Return a paragraph of kind text, lead or notice; text in backticks is set as code."""
    return _block("paragraph", [(part, odd % 2 == 1) for odd, part in enumerate(re.split("`(.+?)`", text))], kind)


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Return a row of key numbers, each a value and its description."""
    return _block("tiles", numbers)


def table(caption: str, head: Sequence[str], rows: Sequence[Row], texts: Sequence[int] = ()) -> str:
    """Return a table whose first column has the names of the rows.

    Args:
        caption: above the table.
        head: names of the columns.
        rows: cells; lines of a text cell after the first are set in small type.
        texts: indices of columns of long text, which is aligned to the left.
    """
    return _block("table", caption, head, rows, texts)


def tables(items: Sequence[str]) -> str:
    """Return tables that are shown next to each other if there is room."""
    return _block("group", "tables", items)


def chart(title: str, edges: np.ndarray, heights: np.ndarray, x_label: str, unit: str = "") -> str:
    """Return a bar chart as SVG.

    Args:
        title: of the chart.
        edges: (n + 1,) float, edges of the bars.
        heights: (n,) float, 0 or more; NaN for no bar.
        x_label: label of the x axis.
        unit: appended to the numbers of the y axis.
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
    """Return round numbers from `low` to `high` in at most `most` steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [round(float(step * n), 10) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def charts(items: Sequence[str], caption: str) -> str:
    """Return a figure of charts with one caption."""
    return _block("figure", "charts", items, caption)


def card(pictures: Sequence[Picture], name: str) -> str:
    """Return a card of up to three pictures next to each other, with the lines below each, and a name."""
    return _block("card", pictures, name)


def cards(items: Sequence[str], caption: str) -> str:
    """Return a figure of cards with one caption."""
    return _block("figure", "cards", items, caption)

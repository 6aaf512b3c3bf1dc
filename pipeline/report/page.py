"""This file sets text, tables, charts and pictures into one HTML page that needs nothing else."""

import base64
import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

# The training report looks the same; the packages share nothing but the cache, so its style is said again here.
STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d5d9de; --faint: #f5f6f8; --accent: #1f4e79; --bad: #b3372f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 "Source Sans 3", "Source Sans Pro",
       "Segoe UI", "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3.2rem 0 .8rem;
     padding-top: .9rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: break-word; }
.lead { color: var(--soft); } code { font-size: .9em; }
.notice { border-left: 3px solid var(--bad); padding: .1rem 0 .1rem .9rem; }
nav { margin: 1.4rem 0 0; font-size: .92rem; line-height: 2; display: flex; flex-wrap: wrap; column-gap: 1.1rem; }
nav a { white-space: nowrap; color: var(--accent); text-decoration: none; } nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1px; margin: 1.6rem 0 .8rem;
         background: var(--line); border: 1px solid var(--line); }
.tile { background: #fff; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.55rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; line-height: 1.35; display: block; }
figure { margin: 1.4rem 0 2rem; }
figcaption { color: var(--soft); font-size: .9rem; line-height: 1.45; max-width: 46rem; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); gap: 0 2rem;
          align-items: start; margin-bottom: 1rem; }
.tables figure { margin: 1rem 0; min-width: 0; }
.tables figcaption { padding-bottom: .5rem; }
.scroll { overflow-x: auto; }
/* Collapsed borders stay behind when a sticky cell moves, and those at fractions of a pixel get lost under it. */
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; line-height: 22px;
        font-variant-numeric: tabular-nums; }
tbody tr:last-child td { border-bottom: 2px solid var(--ink); }
thead th { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); font-weight: 600;
           vertical-align: bottom; }
th, td { padding: 5px .55rem; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; white-space: normal; min-width: 8rem;
                                 position: sticky; left: 0; background: #fff; }
td.text, th.text { text-align: left; white-space: normal; min-width: 11rem; max-width: 34rem; overflow-wrap: anywhere; }
td small { display: block; color: var(--soft); font-size: .78rem; line-height: 17px; }
td.share b { display: inline-block; min-width: 3.6rem; font-weight: inherit; }
.track { display: inline-block; vertical-align: middle; width: 4rem; height: .5rem;
         background: var(--faint); }
.fill { display: block; height: 100%; background: var(--accent); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.2rem 1.6rem;
          margin-bottom: .7rem; }
.chart b { display: block; font-size: .92rem; line-height: 1.3; margin-bottom: .2rem; }
.chart svg { display: block; width: 100%; height: auto; max-width: 30rem; }
svg text { font-size: 14px; fill: var(--soft); } svg .bar { fill: var(--accent); }
svg .grid { stroke: var(--line); stroke-width: .8; } svg .axis { stroke: var(--soft); stroke-width: .8; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.4rem 1.2rem; }
.cards + figcaption { margin-top: .9rem; }
.card { border: 1px solid var(--line); min-width: 0; }
.strip, .words { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
.strip img { display: block; width: 100%; height: auto; }
.words { font-size: .8rem; line-height: 1.3; padding-top: .45rem; }
.words span { padding: 0 .5rem; overflow-wrap: anywhere; } .words b { color: var(--accent); display: block; }
.card .name { color: var(--soft); font-size: .82rem; padding: .35rem .5rem .55rem; line-height: 1.35; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line);
         color: var(--soft); font-size: .88rem; }
@media (max-width: 600px) {
  .track { display: none; }
  main { padding: 1.4rem 1rem 3rem; } h1 { font-size: 1.55rem; } h2 { margin-top: 2.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile { padding: .7rem .75rem; } .tile b { font-size: 1.25rem; }
  th, td { padding: 5px .45rem; } thead th { white-space: normal; }
  td.text { min-width: 8rem; } .words { font-size: .72rem; }
}
@media print { nav { display: none; } .card, figure, tr { break-inside: avoid; } }
"""

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


Row = list[str | Share]


class Picture(NamedTuple):
    """One picture of a card: PNG, what it shows, and two lines beneath it."""

    png: bytes
    words: str
    first: str
    second: str


def page(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """Return the HTML document."""
    contents = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{"".join(section.blocks)}</section>\n'
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without an icon of its own a browser asks the server for one.
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<header><h1>{escape(title)}</h1>{paragraph(lead, 'lead')}<nav>{contents}</nav></header>\n"
        f"{body}<footer>{paragraph(foot)}</footer>\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "text") -> str:
    """Return a paragraph of text; what stands in backticks is code. `kind`: text, lead or notice."""
    content = re.sub("`(.+?)`", r"<code>\1</code>", escape(text))
    return f'<p class="{kind}">{content}</p>'


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Return the row of key numbers, each a value and what it is."""
    each = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in numbers)
    return f'<div class="tiles">{"".join(each)}</div>'


def table(caption: str, head: Sequence[str], rows: Sequence[Row], texts: Sequence[int] = ()) -> str:
    """Return a table whose first column names the row.

    Args:
        rows: text cells may hold small lines after a newline.
        texts: columns of long text, set to the left.
    """
    names = "".join(
        f'<th class="text">{escape(name)}</th>' if i in texts else f"<th>{escape(name)}</th>"
        for i, name in enumerate(head)
    )
    lines = "".join(f"<tr>{''.join(_cell(value, i in texts) for i, value in enumerate(row))}</tr>" for row in rows)
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><div class="scroll"><table>'
        f"<thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div></figure>\n"
    )


def tables(items: Sequence[str]) -> str:
    """Return tables that stand side by side where there is room."""
    return f'<div class="tables">{"".join(items)}</div>\n'


def _cell(value: str | Share, is_text: bool) -> str:
    if isinstance(value, Share):
        if not value.whole:
            return '<td class="share">-</td>'
        percent = 100 * value.part / value.whole
        bar = f'<span class="track"><span class="fill" style="width:{percent:.1f}%"></span></span>'
        return f'<td class="share">{bar}<b>{percent:.1f} %</b></td>'
    first, *rest = value.split("\n")
    content = escape(first) + "".join(f"<small>{escape(line)}</small>" for line in rest)
    return f'<td class="text">{content}</td>' if is_text else f"<td>{content}</td>"


# --- charts --------------------------------------------------------------------------------------------------------


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
    y_ticks = [at for at in ticks(0, top, 4) if not counts or at.is_integer()]
    low, high = float(edges[0]), float(edges[-1])

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(at):.1f}" y2="{y(at):.1f}"></line>'
        f'<text x="{LEFT - 6}" y="{y(at) + 5:.1f}" text-anchor="end">{at:,g}{unit}</text>'
        for at in y_ticks
    ]
    parts += [
        f'<rect class="bar" x="{x(left) + 0.5:.1f}" y="{y(height):.1f}" width="{max(x(right) - x(left) - 1, 1):.1f}" '
        f'height="{y(0) - y(height):.1f}"><title>{left:g} to {right:g}: {height:,.4g}{unit}</title></rect>'
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True)
        if height > 0
    ]
    parts += [
        f'<line class="axis" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(0):.1f}" y2="{y(0) + 4:.1f}"></line>'
        f'<text x="{x(at):.1f}" y="{y(0) + 18:.1f}" text-anchor="middle">{at:g}</text>'
        for at in ticks(low, high, 7)
    ]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"></line>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return (
        f'<div class="chart"><b>{escape(title)}</b><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></div>'
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, in steps of 1, 2 or 5 times a power of ten, at most `most` steps."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [round(float(step * n), 10) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def charts(items: Sequence[str], caption: str) -> str:
    """Return a figure of charts with one caption."""
    return f'<figure><div class="charts">{"".join(items)}</div><figcaption>{escape(caption)}</figcaption></figure>\n'


# --- pictures ------------------------------------------------------------------------------------------------------


def card(pictures: Sequence[Picture], name: str) -> str:
    """Return pictures side by side, at most three, each with its lines beneath, and what they belong to."""
    images = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(picture.png).decode()}" alt="{escape(picture.words)}">'
        for picture in pictures
    )
    words = "".join(
        f"<span>{escape(picture.first)}{f'<b>{escape(picture.second)}</b>' if picture.second else ''}</span>"
        for picture in pictures
    )
    return (
        f'<div class="card"><div class="strip">{images}</div><div class="words">{words}</div>'
        f'<div class="name">{escape(name)}</div></div>\n'
    )


def cards(items: Sequence[str], caption: str) -> str:
    """Return a sheet of cards with one caption."""
    return f'<figure><div class="cards">{"".join(items)}</div><figcaption>{escape(caption)}</figcaption></figure>\n'

"""This file sets text, tables, figures and pictures into one HTML page that needs nothing else."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d5d9de; --faint: #f5f6f8; --accent: #1f4e79; --good: #2e7d4f;
        --bad: #b3372f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 "Source Sans 3", "Source Sans Pro",
       "Segoe UI", "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3.2rem 0 .8rem;
     padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; }
.lead { color: var(--soft); }
.notice { border-left: 3px solid var(--bad); padding: .1rem 0 .1rem .9rem; }
nav { margin: 1.4rem 0 0; font-size: .92rem; line-height: 2; display: flex; flex-wrap: wrap; column-gap: 1.1rem; }
nav a { white-space: nowrap; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1px; margin: 1.6rem 0 .8rem;
         background: var(--line); border: 1px solid var(--line); }
.tile { background: #fff; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.55rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; line-height: 1.35; display: block; }
figure { margin: 1.4rem 0 2rem; }
figcaption { color: var(--soft); font-size: .9rem; line-height: 1.45; text-align: left; max-width: 46rem; }
.table figcaption { padding-bottom: .5rem; }
.panels { display: grid; gap: 1rem 1.4rem; margin-bottom: .6rem; justify-content: start; }
.panels img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
/* Collapsed borders stay behind when a sticky cell moves, and those at fractions of a pixel get lost under it. */
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; line-height: 22px;
        font-variant-numeric: tabular-nums; }
tbody tr:last-child td { border-bottom: 2px solid var(--ink); }
thead th { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); font-weight: 600;
           vertical-align: bottom; }
th, td { padding: 5px .55rem; text-align: right; white-space: nowrap; }
thead th { white-space: normal; max-width: 8.5rem; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; position: sticky; left: 0; background: #fff; }
td.text, th.text { text-align: left; white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
td small { display: block; color: var(--soft); font-size: .74rem; line-height: 14px; }
tr.rule td { border-top: 1px solid var(--line); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.4rem 1.2rem; }
.cards + figcaption { margin-top: .9rem; }
.card { border: 1px solid var(--line); background: #fff; min-width: 0; }
.strip { display: grid; background: #000; gap: 1px; }
.strip img { display: block; width: 100%; height: auto; }
.card .body { padding: .6rem .8rem .75rem; font-size: .82rem; line-height: 1.35; }
.card .name { color: var(--soft); overflow-wrap: anywhere; margin-bottom: .35rem; }
.bars { display: grid; grid-template-columns: max-content minmax(0, 1fr) 2.6rem; gap: .1rem .6rem;
        align-items: center; }
.bars .track { height: .5rem; background: var(--faint); }
.bars .fill { height: 100%; background: #9aa7b4; }
.bars .present { font-weight: 600; } .bars .present + .track .fill { background: var(--accent); }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; color: var(--soft); }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--faint); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.5; }
code { font-size: .9em; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line);
         color: var(--soft); font-size: .88rem; }
@media (max-width: 600px) {
  main { padding: 1.4rem 1rem 3rem; } h1 { font-size: 1.55rem; } h2 { margin-top: 2.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile { padding: .7rem .75rem; } .tile b { font-size: 1.25rem; }
  td.text, th.text { min-width: 6rem; }
}
@media print { nav { display: none; } .card, figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, which the contents line names."""

    title: str
    blocks: Sequence[str]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def page(title: str, head: Sequence[str], sections: Sequence[Section], foot: str) -> str:
    """Return the HTML document; `head` are the blocks between the title and the contents line."""
    contents = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{"".join(section.blocks)}</section>\n'
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without an icon of its own a browser asks the server for one, and logs an error where there is none.
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<header><h1>{escape(title)}</h1>{''.join(head)}<nav>{contents}</nav></header>\n"
        f"{body}<footer>{foot}</footer>\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Return the row of key numbers, each a value and what it is."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in numbers
        )
        + "</div>"
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """Return a table whose first column names the row; a cell may hold a second, small line after a newline."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="text">{_cell(value)}</{tag}>' if i in text_columns else f"<{tag}>{_cell(value)}</{tag}>"
            for i, value in enumerate(row)
        )

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<figure class="table"><figcaption>{escape(caption)}</figcaption><div class="scroll"><table>'
        f"<thead><tr>{cells('th', head)}</tr></thead><tbody>{lines}</tbody></table></div></figure>"
    )


def _cell(value: str) -> str:
    first, newline, rest = value.partition("\n")
    return escape(first) + (f"<small>{escape(rest)}</small>" if newline else "")


def figure(panels: Sequence[tuple[bytes, str]], caption: str, width: str = "20rem") -> str:
    """Return a figure.

    Args:
        panels: SVG of each picture and what it shows, in words.
        width: least width of a panel, beneath which panels go below each other.
    """
    images = "".join(f'<img src="{data_address(svg, "image/svg+xml")}" alt="{escape(words)}">' for svg, words in panels)
    columns = f"repeat(auto-fit, minmax(min(100%, {width}), 1fr))"
    return (
        f'<figure><div class="panels" style="grid-template-columns: {columns}">{images}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def card(pictures: Sequence[tuple[str, str]], name: str, bars: Sequence[tuple[str, float, bool]]) -> str:
    """Return a slice with its pictures side by side and a bar for each class: name, probability, label is positive."""
    images = "".join(f'<img src="{address}" alt="{escape(words)}">' for address, words in pictures)
    lines = "".join(
        f'<span class="{"present" if present else "absent"}">{escape(label)}</span>'
        f'<span class="track"><span class="fill" style="display:block;width:{100 * value:.1f}%"></span></span>'
        f'<span class="value">{value:.2f}</span>'
        for label, value, present in bars
    )
    columns = f"repeat({len(pictures)}, 1fr)"
    return (
        f'<div class="card"><div class="strip" style="grid-template-columns: {columns}">{images}</div>'
        f'<div class="body"><div class="name">{escape(name)}</div><div class="bars">{lines}</div></div></div>'
    )


def cards(items: Sequence[str], caption: str) -> str:
    """Return a sheet of cards with one caption."""
    return f'<figure><div class="cards">{"".join(items)}</div><figcaption>{escape(caption)}</figcaption></figure>'


def code(text: str) -> str:
    """Return a block of commands."""
    return f"<pre>{escape(text)}</pre>"


def details(title: str, content: str) -> str:
    """Return a block that opens when asked to."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def data_address(content: bytes, media_type: str) -> str:
    """Return the bytes as an address that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

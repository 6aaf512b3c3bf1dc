"""Render text, tables, figures and pictures as one self-contained HTML page.

The templates in templates/ define how a block looks; this module, what it shows.
"""

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, listed in the contents."""

    title: str
    blocks: Sequence[str]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("training.report")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _block(name: str, *values: object) -> str:
    return str(getattr(_templates().get_template("blocks.html").module, name)(*values))


def page(title: str, head: Sequence[str], sections: Sequence[Section], foot: str) -> str:
    """Return the HTML document; `head` holds the blocks between title and contents."""
    return _templates().get_template("page.html").render(title=title, head=head, sections=sections, foot=foot)


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text; `kind` is "", "lead" or "notice"."""
    return _block("paragraph", text, kind)


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Return a row of key numbers, each a value and its name."""
    return _block("tiles", numbers)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """Return a table whose first column names the row; what follows a newline in a cell is set small.

    Args:
        caption: text above the table.
        head: names of the columns.
        rows: the cells.
        text_columns: indices of columns with running text, which are aligned left and may wrap.
    """
    return _block("table", caption, head, rows, text_columns)


def figure(panels: Sequence[tuple[bytes, str]], caption: str, width: str = "20rem") -> str:
    """Return a figure.

    Args:
        panels: each picture as SVG, and its description.
        caption: text below the figure.
        width: minimum width of a panel as a CSS length; panels wrap to the next line where there is less.
    """
    return _block("figure", [(data_address(svg, "image/svg+xml"), words) for svg, words in panels], caption, width)


def card(pictures: Sequence[tuple[str, str]], name: str, bars: Sequence[tuple[str, float, bool]]) -> str:
    """Return a slice as a card: its pictures side by side, and a bar per class.

    Args:
        pictures: address and description of each.
        name: text above the bars.
        bars: class, probability in [0, 1], and whether the label is positive.
    """
    return _block("card", pictures, name, bars)


def cards(items: Sequence[str], caption: str) -> str:
    """Return a sheet of cards with one caption."""
    return _block("cards", items, caption)


def code(text: str) -> str:
    """Return a block of commands."""
    return _block("code", text)


def details(title: str, content: str) -> str:
    """Return a block that the reader can open."""
    return _block("details", title, content)


def data_address(content: bytes, media_type: str) -> str:
    """Return the bytes as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

"""Set text, tables, figures and pictures into one HTML page that needs nothing else.

How a block looks stands in templates/; here is what it shows.
"""

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, which the contents line names."""

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
    """Return the HTML document; `head` are the blocks between the title and the contents line."""
    return _templates().get_template("page.html").render(title=title, head=head, sections=sections, foot=foot)


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return _block("paragraph", text, kind)


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Return the row of key numbers, each a value and what it is."""
    return _block("tiles", numbers)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """Return a table whose first column names the row; a cell may hold a second, small line after a newline."""
    return _block("table", caption, head, rows, text_columns)


def figure(panels: Sequence[tuple[bytes, str]], caption: str, width: str = "20rem") -> str:
    """Return a figure.

    Args:
        panels: SVG of each picture and what it shows, in words.
        width: least width of a panel, beneath which panels go below each other.
    """
    return _block("figure", [(data_address(svg, "image/svg+xml"), words) for svg, words in panels], caption, width)


def card(pictures: Sequence[tuple[str, str]], name: str, bars: Sequence[tuple[str, float, bool]]) -> str:
    """Return a slice with its pictures side by side and a bar for each class: name, probability, label is positive."""
    return _block("card", pictures, name, bars)


def cards(items: Sequence[str], caption: str) -> str:
    """Return a sheet of cards with one caption."""
    return _block("cards", items, caption)


def code(text: str) -> str:
    """Return a block of commands."""
    return _block("code", text)


def details(title: str, content: str) -> str:
    """Return a block that opens when asked to."""
    return _block("details", title, content)


def data_address(content: bytes, media_type: str) -> str:
    """Return the bytes as an address that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

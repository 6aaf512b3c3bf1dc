"""Parse the report of a cache strictly."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Parses the report and requires that tags are closed in order.

    Attributes:
        tables: caption -> first cell of each row -> the others.
        tiles: description -> value.
        pictures: the decoded images.
        words: the paragraphs.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, dict[str, list[str]]] = {}
        self.tiles: dict[str, str] = {}
        self.pictures: list[np.ndarray] = []
        self.words: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            kind, _, content = attributes["src"].partition(",")
            assert kind == "data:image/png;base64"
            assert attributes["alt"]
            self.pictures.append(np.array(Image.open(io.BytesIO(base64.b64decode(content, validate=True)))))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figcaption":
            self._caption = ""
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag == "small":
            self._rows[-1][-1] += "\n"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = {row[0]: row[1:] for row in self._rows[1:]}

    def handle_data(self, data):
        if "figcaption" in self.open:
            self._caption += data
        elif "td" in self.open or "th" in self.open:
            self._rows[-1][-1] += data
        elif "div" in self.open and "b" in self.open:
            self._value = data
        elif "div" in self.open and "span" in self.open and hasattr(self, "_value"):
            self.tiles[data] = self._value
        elif self.open and self.open[-1] == "p":
            self.words.append(data)

    def table(self, caption: str) -> dict[str, list[str]]:
        """Return the only table whose caption starts with this: first cell of each row -> the others."""
        (found,) = (rows for name, rows in self.tables.items() if name.startswith(caption))
        return found


def numbers(rows: dict[str, list[str]]) -> dict[str, int]:
    """Return first cell of each row -> the number in the second."""
    return {name: int(cells[0].replace(",", "")) for name, cells in rows.items()}

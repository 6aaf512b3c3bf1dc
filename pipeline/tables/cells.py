"""Read a CSV file of labels, as people save them, into cells of text."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import pandas as pd

from pipeline.errors import SourceError

SEPARATORS = (",", ";", "\t")


def read_cells(name: str, content: bytes) -> tuple[pd.DataFrame, str]:
    """Parse a label file with any separator, line ends and quotes.

    Args:
        name: of the file, for messages.

    Returns:
        every cell as text without blanks around it, columns as the header names them, lines by their numbers in the
        file, a column that counts lines left out; and the separator.

    Raises:
        SourceError: no text, no header, two columns of one name, or lines of other lengths than the header.
    """
    text = _decode(name, content)
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        if not any(header):
            raise SourceError(f"{name}: not a CSV file with labels: it has no header")
        if header[-1] == "":
            header.pop()
        lines = dict(_cells(name, reader, len(header)))
    except csv.Error as error:
        raise SourceError(f"{name}: line {reader.line_num}: not a CSV file with labels ({error})") from error
    if len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise SourceError(f"{name}: two columns are called {twice!r}; rename or remove one")
    frame = pd.DataFrame(list(lines.values()), pd.Index(lines.keys()), header, dtype=object)
    return _without_count(frame), separator


def _decode(name: str, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SourceError(f"{name}: not a CSV file with labels: it is UTF-16; save it as CSV with UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SourceError(
            f"{name}: line {line}: not a CSV file with labels: it is not UTF-8; save it as UTF-8"
        ) from error


def _cells(name: str, reader: Any, width: int) -> Iterator[tuple[int, list[str]]]:
    """Lines by number; a separator at the end of a line is no harm, and a line without anything is none."""
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) == width + 1 and not cells[-1]:
            cells.pop()
        if len(cells) != width:
            what = "more" if len(cells) > width else "fewer"
            raise SourceError(
                f"{name}: line {reader.line_num} has {what} cells than the header, {len(cells)} instead of {width}; "
                "correct the line, or quote cells that hold the separator"
            )
        yield reader.line_num, cells


def _without_count(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame without a first column that counts lines, which `to_csv` and spreadsheets add."""
    first = frame.columns[0]
    if len(frame.columns) < 3 or str(first).lower() not in ("", "index", "unnamed: 0"):
        return frame
    counts = frame[first].tolist() in ([str(n + start) for n in range(len(frame))] for start in (0, 1))
    return frame.drop(columns=first) if counts else frame

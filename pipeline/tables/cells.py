"""Parse a label file, a CSV file with any common separator, into cells of text."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import pandas as pd

from pipeline.errors import SourceError

SEPARATORS = (",", ";", "\t")


def read_cells(name: str, content: bytes) -> tuple[pd.DataFrame, str]:
    """Parse a label file with any of `SEPARATORS`, line ends and quotes.

    Args:
        name: of the file, for messages.
        content: of the file.

    Returns:
        The cells as stripped text, with the columns of the header except for one with line numbers, indexed by line
        number in the file; and the separator.

    Raises:
        SourceError: it is not UTF-8, has no header or two columns with the same name, or a line has more or fewer
            cells than the header.
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
    return _drop_line_numbers(frame), separator


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
    """Yield line number and cells of each line; ignore a separator at the end of a line, and skip empty lines."""
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
                "correct the line, or quote cells that contain the separator"
            )
        yield reader.line_num, cells


def _drop_line_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop a first column of line numbers, as added by pandas and spreadsheets."""
    first = frame.columns[0]
    if len(frame.columns) < 3 or str(first).lower() not in ("", "index", "unnamed: 0"):
        return frame
    counts = frame[first].tolist() in ([str(n + start) for n in range(len(frame))] for start in (0, 1))
    return frame.drop(columns=first) if counts else frame

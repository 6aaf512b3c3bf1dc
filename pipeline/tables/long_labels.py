"""Read RSNA's long format, `ID,Label` with ID = `<image>_<class>`, with array operations.

The label file of RSNA 2019 has 4.5 million lines. A general parser spends most of its time and memory on a text object
for each of them; here the file remains one array of bytes.
"""

from collections.abc import Sequence

import numpy as np

NEWLINE, RETURN, QUOTE, COMMA, ZERO = (ord(character) for character in '\n\r",0')
LAST_ASCII = 127
NEEDS_CARE = (QUOTE, 0, *b" \t")
HEADERS = (b"ID,Label\n", b"ID,Label\r\n")
BLOCK = 1 << 18  # lines processed at a time
MAX_NAME_BYTES = 128  # of an image
TAIL_BYTES = 4  # last bytes of each ID that are compared in one step


def read_plain(content: bytes, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Parse a plain file: one of `HEADERS`, ASCII without quotes and blanks, known classes, consistent labels 0 or 1.

    Args:
        content: of the file.
        classes: names in the order of the columns.

    Returns:
        The unique names of images, (images,) dtype S, and their labels, (images, classes) float32: 0, 1, or NaN without
        a line. None if the file is not plain: the general parser then reads it or reports the error.
    """
    data = np.frombuffer(content.removeprefix(b"\xef\xbb\xbf"), np.uint8)
    header = next((head for head in HEADERS if data[: len(head)].tobytes() == head), None)
    if header is None or (data > LAST_ASCII).any() or any((data == byte).any() for byte in NEEDS_CARE):
        return None
    starts, ends = _lines(data, len(header), has_returns=header.endswith(b"\r\n"))
    if not starts.size or (ends - starts < 4).any() or (data[ends - 2] != COMMA).any():
        return None
    values = data[ends - 1] - ZERO
    stops, column = _columns(data, starts, ends - 2, [name.encode() for name in classes])
    if (values > 1).any() or (column < 0).any() or int((data == COMMA).sum()) != len(starts) + 1:
        return None
    named = _images(data, starts, stops)
    if named is None:
        return None
    images, line_image = named
    table = np.full((len(images), len(classes)), np.nan, np.float32)
    table[line_image, column] = values
    return (images, table) if (table[line_image, column] == values).all() else None


def _lines(data: np.ndarray, first: int, *, has_returns: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and stop of each line, without its line end; an empty last line does not count."""
    ends = np.flatnonzero(data == NEWLINE)
    if data[-1] != NEWLINE:
        ends = np.append(ends, len(data))
    starts = np.concatenate([[first], ends[1:-1] + 1])
    ends = ends[1:]
    if not len(ends):
        return starts[:0], ends
    ends = ends - (data[ends - 1] == RETURN) if has_returns else ends
    return starts, ends


def _columns(
    data: np.ndarray, starts: np.ndarray, ends: np.ndarray, classes: list[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the end of the image's name in each line, and the index of the class after it, -1 if unknown.

    If several classes match, the longest counts.
    """
    column, stops = np.full(len(ends), -1, np.int8), ends.copy()
    tails = [data[np.maximum(ends - back, 0)] for back in range(1, TAIL_BYTES + 1)]
    for number, name in sorted(enumerate(classes), key=lambda pair: -len(pair[1])):
        suffix = b"_" + name
        fits = (column < 0) & (ends - starts > len(suffix))
        for back, tail in zip(range(1, len(suffix) + 1), tails, strict=False):
            fits &= tail == suffix[-back]
        lines = np.flatnonzero(fits)
        for back in range(TAIL_BYTES + 1, len(suffix) + 1):
            lines = lines[data[ends[lines] - back] == suffix[-back]]
        column[lines] = number
        stops[lines] -= len(suffix)
    return stops, column


def _images(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the unique names of images, dtype S, and the index of each line's name; None if a name is empty or long.

    The lines of an image are mostly adjacent, so only the first of a run is sorted.
    """
    width = int((stops - starts).max())
    if width > MAX_NAME_BYTES:
        return None
    heads, runs, count = [], [], 0
    padded = np.concatenate([data, np.zeros(width, np.uint8)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    for begin in range(0, len(starts), BLOCK):
        block = slice(begin, begin + BLOCK)
        names = windows[starts[block]]  # a copy, (BLOCK, width)
        names[np.arange(width) >= (stops - starts)[block, None]] = 0
        if (names[:, :1] == 0).any():
            return None
        new = np.append(True, (names[1:] != names[:-1]).any(axis=1))
        heads.append(names[new].view(f"S{width}")[:, 0])
        runs.append(count + np.cumsum(new) - 1)
        count += int(new.sum())
    images, run_image = np.unique(np.concatenate(heads), return_inverse=True)
    return images, run_image[np.concatenate(runs)]

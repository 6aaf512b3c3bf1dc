"""This file reads label files: one line a slice, one column a class."""

import difflib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pandas as pd

from pipeline.errors import SourceError
from pipeline.planning.catalog import LabelFile


def read_labels(labels: LabelFile, content: bytes, classes: Sequence[str]) -> pd.DataFrame:
    """Parse a label file.

    Args:
        content: the file's bytes; `labels.filepath` is only for messages.

    Returns:
        float32, index `image_id`, one column a class in the order of `classes`: 0, 1, or NaN for an empty cell.
        Lines that say the same of an image are merged.

    Raises:
        SourceError: not such a file, an unknown class, a value that is not 0 or 1, lines that contradict each other.
    """
    name = str(labels.filepath)
    try:
        frame = pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SourceError(f"{name}: not a CSV file with labels ({error})") from error
    if labels.type == "rsna_long":
        return _read_rsna_long(name, frame, list(classes))
    return _read_wide(name, frame, list(classes))


def labels_of_table(name: str, table: bytes, classes: Sequence[str]) -> pd.DataFrame:
    """The labels that a commit's table holds, as `read_labels` gives them.

    Args:
        name: of the file that they came from, for messages.

    Raises:
        SourceError: a class is none of the table's.
    """
    frame = pd.read_csv(BytesIO(table), dtype={"image_id": str}, keep_default_na=False, na_values=[""])
    for klass in classes:
        if klass not in frame.columns:
            raise SourceError(
                f"{name}: is gone, and the commit has no labels of the class {klass}; bring the file back, give "
                "--labels FILE, or take the class out of the catalog"
            )
    labels = frame.drop_duplicates("image_id").set_index("image_id")[list(classes)].astype(np.float32)
    return labels.dropna(how="all")


def _read_rsna_long(name: str, frame: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """`ID,Label` with ID = `<image>_<class>`, one line a class of an image."""
    if list(frame.columns[:2]) != ["ID", "Label"]:
        raise SourceError(f"{name}: the header is {','.join(frame.columns[:4])}, the RSNA long format has ID,Label")
    ids = frame["ID"]
    column = np.full(len(frame), -1, np.int64)
    images = np.empty(len(frame), object)
    for number, klass in sorted(enumerate(classes), key=lambda pair: -len(pair[1])):
        mask = ids.str.endswith(f"_{klass}").to_numpy(bool) & (column < 0)
        column[mask] = number
        images[mask] = ids[mask].str.slice(stop=-len(klass) - 1).to_numpy(object)
    if (column < 0).any():
        line = int(np.flatnonzero(column < 0)[0])
        _refuse_class(name, line, ids.iloc[line], str(ids.iloc[line]).rpartition("_")[2], classes)
    values = _values(name, frame["Label"], "Label")
    codes, unique = pd.factorize(pd.Series(images))
    table = np.full((len(unique), len(classes)), np.nan, np.float32)
    table[codes, column] = values
    disagree = np.flatnonzero(~_equal(table[codes, column], values))
    if disagree.size:
        raise SourceError(f"{name}: {ids.iloc[disagree[0]]} is given twice with different labels; correct the file")
    return _labels(table, unique, classes)


def _read_wide(name: str, frame: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """One line an image: its id in `image_id` or the first column, then one column a class, in any order."""
    columns = list(frame.columns)
    if columns[:2] == ["ID", "Label"]:
        raise SourceError(f"{name}: this is the RSNA long format; use --dataset rsna, or labels: {{type: rsna_long}}")
    key = "image_id" if "image_id" in columns else columns[0]
    missing = [klass for klass in classes if klass not in columns]
    if missing:
        near = difflib.get_close_matches(missing[0], [c for c in columns if c != key], n=1)
        hint = f", is it the column {near[0]}?" if near else f"; its columns are {', '.join(columns)}"
        raise SourceError(f"{name}: there is no column for the class {missing[0]}{hint}")
    table = np.stack([_values(name, frame[klass], klass) for klass in classes], 1)
    codes, unique = pd.factorize(frame[key])
    merged = np.full((len(unique), len(classes)), np.nan, np.float32)
    merged[codes] = table
    disagree = np.flatnonzero(~_equal(merged[codes], table).all(1))
    if disagree.size:
        image = frame[key].iloc[disagree[0]]
        raise SourceError(f"{name}: {image} is given twice with different labels; correct the file")
    return _labels(merged, unique, classes)


def _values(name: str, cells: pd.Series, column: str) -> np.ndarray:
    """Cells as float32 0, 1 or NaN."""
    numbers = pd.to_numeric(cells.str.strip(), errors="coerce").to_numpy(np.float32, na_value=np.nan)
    empty = (cells.str.strip() == "").to_numpy(bool)
    wrong = ~(empty | (numbers == 0) | (numbers == 1))
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0])
        raise SourceError(f"{name}: line {line + 2}: {column} is {cells.iloc[line]!r}, it must be 0, 1 or empty")
    return np.where(empty, np.float32(np.nan), numbers).astype(np.float32)


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _labels(table: np.ndarray, images: pd.Index, classes: list[str]) -> pd.DataFrame:
    return pd.DataFrame(table, index=pd.Index(images, name="image_id"), columns=classes)


def _refuse_class(name: str, line: int, label: str, klass: str, classes: list[str]) -> None:
    near = difflib.get_close_matches(klass, classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(classes)}"
    raise SourceError(f"{name}: line {line + 2}: {label}: unknown class {klass!r}, {hint}")

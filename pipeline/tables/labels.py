"""Read label files in the wide format (a line per slice, series, study or patient) and in RSNA's long format."""

import difflib
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import pandas as pd

from pipeline.errors import SourceError
from pipeline.planning.catalog import LabelFile
from pipeline.tables.cells import read_cells
from pipeline.tables.long_labels import read_plain

# Level of labels -> the column of the table that identifies it.
KEYS = {
    "slice": "image_id",
    "series": "series_instance_uid",
    "study": "study_instance_uid",
    "patient": "patient_id",
}
# Other names of that column in label files; only lower-case letters and digits are compared.
NAMES = {
    "slice": ("imageid", "image", "sopinstanceuid", "sopuid", "slice", "sliceid", "filename", "file"),
    "series": ("seriesinstanceuid", "seriesuid", "seriesid", "series"),
    "study": ("studyinstanceuid", "studyuid", "studyid", "study", "accessionnumber"),
    "patient": ("patientid", "patient", "subjectid", "subject"),
}
LONG_COLUMNS = ["id", "label"]
WORDS = {"true": "1", "false": "0", "nan": ""}


def read_labels(
    labels: LabelFile, content: bytes, classes: Sequence[str], convert_patient: Callable[[str], str] = str
) -> pd.DataFrame:
    """Parse a label file.

    Args:
        labels: its format; `filepath` is only used in messages.
        content: the file's bytes.
        classes: names of the classes.
        convert_patient: converts patient ids of the file to those of the table, for labels per patient.

    Returns:
        One line per slice, series, study or patient, and one float32 column per class: 0, 1, a number in between if
        `labels.soft`, or NaN for an empty cell. The index has the name of the table's column that it refers to, such
        as `image_id` for labels per slice. Identical lines are merged.

    Raises:
        SourceError: the file is not a label file, has an unknown class or a value out of range, or its lines contradict
            each other.
    """
    name = str(labels.filepath)
    plain = read_plain(content, classes) if labels.type != "wide" else None
    if plain is not None:
        names, table = [image.decode() for image in plain[0].tolist()], plain[1]
    else:
        frame, separator = read_cells(name, content)
        is_long = [_plain(column) for column in frame.columns[:2]] == LONG_COLUMNS and "label" not in classes
        _check_type(name, labels, frame, is_long=is_long)
        read = _read_long if is_long else _read_wide
        names, table = read(labels, frame, list(classes), _Values(name, soft=labels.soft, separator=separator))
    key = KEYS[labels.level]
    if labels.level == "slice":
        names = [_strip_dcm(image) for image in names]
    elif labels.level == "patient":
        names = [convert_patient(patient) for patient in names]
    return pd.DataFrame(table, index=pd.Index(names, name=key, dtype=object), columns=list(classes))


def labels_of_table(labels: LabelFile, table: bytes, classes: Sequence[str]) -> pd.DataFrame:
    """Return the labels in the table of a commit, in the form of `read_labels`.

    Args:
        labels: format of the labels.
        table: content of metadata.csv.
        classes: names of the classes.

    Raises:
        SourceError: the table has no column for a class.
    """
    key = KEYS[labels.level]
    frame = pd.read_csv(BytesIO(table), dtype={key: str}, keep_default_na=False, na_values={c: [""] for c in classes})
    for klass in classes:
        if klass not in frame.columns:
            raise SourceError(
                f"{labels.filepath}: is gone, and the commit has no labels for the class {klass}; restore the file, "
                "give --labels FILE, or remove the class from the catalog"
            )
    known = frame[~frame[list(classes)].isna().all(axis=1)]
    return known.drop_duplicates(key).set_index(key)[list(classes)].astype(np.float32)


def _strip_dcm(image: str) -> str:
    return image[:-4] if image.lower().endswith(".dcm") else image


def _plain(column: object) -> str:
    """Return a column's name in the form of `NAMES`: lower case, letters and digits only."""
    return "".join(character for character in str(column).lower() if character.isalnum())


def _check_type(name: str, labels: LabelFile, frame: pd.DataFrame, *, is_long: bool) -> None:
    """Raise a SourceError if the file has another format than the catalog says."""
    header = ",".join(map(str, frame.columns[:4]))
    if labels.type == "rsna_long" and not is_long:
        raise SourceError(f"{name}: the header is {header}, but that of the RSNA long format is ID,Label")
    if labels.type == "wide" and is_long:
        raise SourceError(f"{name}: this is the RSNA long format; remove `type: wide` from the catalog's `labels`")


class _Values:
    """Converts cells of a file to labels."""

    def __init__(self, name: str, *, soft: bool, separator: str) -> None:
        self._name, self._soft, self._separator = name, soft, separator

    def read(self, cells: pd.Series, column: str) -> np.ndarray:
        """Return the labels of cells, (N,) float32: 0 to 1, or NaN for an empty cell.

        Raises:
            SourceError: a cell is not a label; the message has its line.
        """
        text = cells.str.lower().replace(WORDS)
        if self._separator == ";":  # used in countries with a decimal comma
            text = text.str.replace(",", ".", regex=False)
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float32, na_value=np.nan)
        empty = (text == "").to_numpy(bool)
        between = (numbers > 0) & (numbers < 1)
        wrong = ~(empty | (numbers == 0) | (numbers == 1) | (between & self._soft))
        if wrong.any():
            self._raise_invalid(cells, column, int(np.flatnonzero(wrong)[0]), between)
        return np.where(empty, np.float32(np.nan), numbers).astype(np.float32)

    def _raise_invalid(self, cells: pd.Series, column: str, place: int, between: np.ndarray) -> None:
        allowed = "a number from 0 to 1" if self._soft else "0, 1"
        hint = "; for probabilities, set labels: {soft: true} in the catalog" if between[place] else ""
        raise SourceError(
            f"{self._name}: line {cells.index[place]}: {column} is {cells.iloc[place]!r}, it must be {allowed} or "
            f"empty{hint}"
        )


def _read_long(
    labels: LabelFile, frame: pd.DataFrame, classes: list[str], values: _Values
) -> tuple[list[str], np.ndarray]:
    """Read `ID,Label` with ID = `<image>_<class>`, one line for each class of an image."""
    name = str(labels.filepath)
    ids = frame.iloc[:, 0]
    lower = ids.str.lower()
    column = np.full(len(frame), -1, np.int64)
    images = np.empty(len(frame), object)
    for number, klass in sorted(enumerate(classes), key=lambda pair: -len(pair[1])):
        mask = lower.str.endswith(f"_{klass.lower()}").to_numpy(bool) & (column < 0)
        column[mask] = number
        images[mask] = ids[mask].str.slice(stop=-len(klass) - 1).to_numpy(object)
    if (column < 0).any():
        place = int(np.flatnonzero(column < 0)[0])
        _raise_unknown_class(name, ids.index[place], ids.iloc[place], classes)
    given = values.read(frame.iloc[:, 1], "Label")
    codes, unique = pd.factorize(pd.Series(images))
    table = np.full((len(unique), len(classes)), np.nan, np.float32)
    table[codes, column] = given
    disagree = np.flatnonzero(~_equal(table[codes, column], given))
    if disagree.size:
        raise SourceError(f"{name}: {ids.iloc[disagree[0]]} is given twice with different labels; correct the file")
    return list(unique), table


def _read_wide(
    labels: LabelFile, frame: pd.DataFrame, classes: list[str], values: _Values
) -> tuple[list[str], np.ndarray]:
    """Read one line per slice, series, study or patient, with a column that identifies it and one for each class."""
    name = str(labels.filepath)
    of_class = {klass: _find_class(name, frame, klass) for klass in classes}
    key = _find_key(labels, [column for column in frame.columns if column not in of_class.values()])
    table = np.stack([values.read(frame[column], klass) for klass, column in of_class.items()], 1)
    codes, unique = pd.factorize(frame[key])
    merged = np.full((len(unique), len(classes)), np.nan, np.float32)
    merged[codes] = table
    disagree = np.flatnonzero(~_equal(merged[codes], table).all(1))
    if disagree.size:
        what = frame[key].iloc[disagree[0]]
        raise SourceError(f"{name}: {what} is given twice with different labels; correct the file")
    return list(unique), merged


def _find_class(name: str, frame: pd.DataFrame, klass: str) -> str:
    """Return the column of a class, ignoring case if there is no exact match.

    Raises:
        SourceError: there is no such column, or several.
    """
    fitting = [column for column in frame.columns if column == klass]
    fitting = fitting or [column for column in frame.columns if column.lower() == klass.lower()]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise SourceError(f"{name}: the columns {' and '.join(fitting)} both match the class {klass}; remove one")
    near = difflib.get_close_matches(klass, list(frame.columns), n=1)
    hint = f", is it the column {near[0]}?" if near else f"; its columns are {', '.join(frame.columns)}"
    raise SourceError(f"{name}: there is no column for the class {klass}{hint}")


def _find_key(labels: LabelFile, columns: list[str]) -> str:
    """Return the column that identifies a line: by its name, or else the first one that is not a class.

    Raises:
        SourceError: there is none, or its name is that of another level.
    """
    if not columns:
        raise SourceError(f"{labels.filepath}: every column is a class; one must identify the {labels.level}")
    named = {level: [c for c in columns if _plain(c) in names] for level, names in NAMES.items()}
    if named[labels.level]:
        return named[labels.level][0]
    others = [level for level, found in named.items() if columns[0] in found]
    if others:
        raise SourceError(
            f"{labels.filepath}: it has labels per {others[0]} ({columns[0]}), but the catalog says per "
            f"{labels.level}; set labels: {{level: {others[0]}}} in the catalog, or give a file with labels per "
            f"{labels.level}"
        )
    return columns[0]


def _raise_unknown_class(name: str, line: int, label: str, classes: list[str]) -> None:
    klass = label.rpartition("_")[2]
    near = difflib.get_close_matches(klass, classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the classes are {', '.join(classes)}"
    raise SourceError(f"{name}: line {line}: {label}: unknown class {klass!r}, {hint}")


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))

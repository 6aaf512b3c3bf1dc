"""The predictions of a run, read from CSV."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from training.errors import RunError
from training.run.digests import check

TEXT_COLUMNS = ("image_id", "patient_id", "study_instance_uid", "series_instance_uid")
COLUMNS = ("row", *TEXT_COLUMNS, "z_norm")


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model on some slices, and their labels.

    Attributes:
        slices: N lines: `row`, `image_id`, `patient_id`, `study_instance_uid`, `series_instance_uid`, `z_norm`.
        classes: K names.
        labels: (N, K) float64 in [0, 1], NaN if missing.
        probabilities: (N, K) float64 in [0, 1].
    """

    slices: pd.DataFrame = field(repr=False)
    classes: tuple[str, ...]
    labels: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.slices)


def read_predictions(path: Path) -> Predictions:
    """Read `predictions_*.csv` of a run; every number is exactly the one written.

    Raises:
        RunError: if the file cannot be read or is not a table of predictions.
    """
    name = path.stem.removeprefix("predictions_")
    tta = " --tta" if name.endswith("_tta") else ""
    remedy = f"run: train evaluate --run {path.parent} --split {name.removesuffix('_tta')}{tta}"
    check(path, remedy)
    try:
        names = pd.read_csv(path, nrows=0).columns
        # Parsers of pandas before 3.1 are off by one bit for some numbers; Python's is exact.
        exact = [name for name in names if name == "z_norm" or name.startswith("p_")]
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(TEXT_COLUMNS, str),
            converters=dict.fromkeys(exact, float),
            keep_default_na=False,
        )
        return from_table(table)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: cannot be read as predictions ({error}); {remedy}") from error


def from_table(table: pd.DataFrame) -> Predictions:
    """Return the predictions in a table; its columns `p_<class>` name the classes.

    Raises:
        KeyError: if a column is missing.
        ValueError: if there is no class, or a value is not a number.
    """
    classes = tuple(name.removeprefix("p_") for name in table.columns if name.startswith("p_"))
    if not classes:
        raise ValueError("it has no column p_<class> of probabilities")
    return Predictions(
        slices=table[list(COLUMNS)],
        classes=classes,
        labels=_numbers(table[list(classes)]),
        probabilities=_numbers(table[[f"p_{name}" for name in classes]]),
    )


def _numbers(columns: pd.DataFrame) -> np.ndarray:
    return columns.apply(pd.to_numeric).to_numpy(np.float64, na_value=np.nan)

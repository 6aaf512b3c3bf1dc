"""This file reads a run's predictions on one side of its split back from CSV."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from training.errors import RunError

TEXT_COLUMNS = ("image_id", "patient_id", "series_instance_uid")
COLUMNS = ("row", *TEXT_COLUMNS, "z_norm")


@dataclass(frozen=True)
class Predictions:
    """What a model said about some slices, and what is known of them.

    Attributes:
        slices: N lines: `row`, `image_id`, `patient_id`, `series_instance_uid`, `z_norm`.
        classes: K names.
        labels: (N, K) float64, 0, 1, or NaN where there is none.
        probabilities: (N, K) float64 in [0, 1].
    """

    slices: pd.DataFrame = field(repr=False)
    classes: tuple[str, ...]
    labels: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.slices)


def read_predictions(path: Path) -> Predictions:
    """Read `predictions_*.csv` of a run, every number as it was written.

    Raises:
        RunError: the file cannot be read or is not a table of predictions.
    """
    way_out = "run: train evaluate --run RUN"
    try:
        table = pd.read_csv(
            path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, float_precision="round_trip"
        )
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as predictions ({error}); {way_out}") from error
    classes = tuple(name.removeprefix("p_") for name in table.columns if name.startswith("p_"))
    if missing := [name for name in (*COLUMNS, *classes) if name not in table.columns]:
        raise RunError(f"{path}: has no column {missing[0]}; {way_out}")
    if not classes:
        raise RunError(f"{path}: has no column of probabilities, p_<class>; {way_out}")
    return Predictions(
        slices=table[list(COLUMNS)],
        classes=classes,
        labels=_numbers(table[list(classes)]),
        probabilities=_numbers(table[[f"p_{name}" for name in classes]]),
    )


def _numbers(columns: pd.DataFrame) -> np.ndarray:
    return columns.apply(pd.to_numeric).to_numpy(np.float64)

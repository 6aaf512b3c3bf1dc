"""Write a run's tables and JSON files, with floats that can be read back exactly."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.neighbours import SERIES
from training.run.digests import write_atomically


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with floats that can be read back exactly; NaN is written as null, which is valid JSON."""
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def prediction_table(
    cache: Cache, lines: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """Join probabilities with the identifiers and labels of the slices.

    Args:
        cache: that the slices are in.
        lines: (n,) lines of the cache's table.
        probabilities: (n, K) float64, in the order of `classes`.
        classes: K names.

    Returns:
        n rows: row, image_id, patient_id, study_instance_uid, series_instance_uid, z_norm, a column per class with its
        label (if the cache has labels), and a column p_<class> per class.
    """
    columns = ["row", "image_id", *SERIES, "z_norm", *cache.classes]
    table = cache.table[columns].iloc[lines].reset_index(drop=True)
    labels = table[list(cache.classes)]
    if (labels.isna() | labels.isin((0, 1))).all(axis=None):  # write hard labels as integers; otherwise they are soft
        table[list(cache.classes)] = labels.astype("Int8")
    return table.join(pd.DataFrame(probabilities, columns=[f"p_{name}" for name in classes]))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write CSV with floats in the shortest form that can be read back exactly, replacing the file atomically."""
    write_atomically(path, lambda file: table.to_csv(file, index=False, lineterminator="\n"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value

"""Write predictions for a cache in the competition's format, in wide format, and per series."""

from pathlib import Path

import numpy as np
import pandas as pd

from training.data.neighbours import SERIES
from training.errors import ConfigError
from training.run.tables import prediction_table, write_table
from training.run.task import Task


def submission(table: pd.DataFrame, probabilities: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    """Return predictions in the competition's format: ID, Label; K rows per slice, with ID <image_id>_<class>.

    The frames of a multi-frame file share an image_id, so _<frame> is appended to it, counted from 1.

    Args:
        table: n lines of a cache's table.
        probabilities: (n, K) float64.
        classes: K names.

    Source: Kaggle, "RSNA Intracranial Hemorrhage Detection", 2019, sample submission of stage 2.
    """
    names = table["image_id"].to_numpy(str).astype(object)
    frames = table["frame"].to_numpy()
    names[frames > 0] += np.array([f"_{frame}" for frame in frames[frames > 0]], object)
    ids = (names[:, None] + np.array([f"_{name}" for name in classes], object)).ravel()
    return pd.DataFrame({"ID": ids, "Label": probabilities.ravel()})


def order_like_sample(predicted: pd.DataFrame, sample: Path) -> pd.DataFrame:
    """Return the rows of a submission that are in the sample submission, in its order.

    Raises:
        ConfigError: if the sample cannot be read, or has an ID that was not predicted.
    """
    try:
        wanted = pd.read_csv(sample, dtype={"ID": str}, keep_default_na=False)["ID"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--sample {sample}: cannot be read as ID,Label ({error})") from error
    ordered = predicted.drop_duplicates("ID").set_index("ID").reindex(wanted)
    if (missing := ordered["Label"].isna()).any():
        first = ordered.index[missing][0]
        raise ConfigError(
            f"--sample {sample}: {missing.sum()} of its rows are for slices that the cache does not have, such as "
            f"{first}; predict on the cache with the sample's slices, or leave --sample out"
        )
    return ordered.reset_index()


def check_sample(sample: Path, table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Raise the ConfigError that `order_like_sample` would raise, before anything is predicted."""
    order_like_sample(submission(table, np.zeros((len(table), len(classes))), classes), sample)


def by_series(wide: pd.DataFrame) -> pd.DataFrame:
    """Return one row per series: its number of slices and the largest probability of each class.

    The largest is used because one slice with blood makes a series with blood.
    """
    groups = wide.groupby(SERIES, sort=False)
    columns = [name for name in wide.columns if name.startswith("p_")]
    return groups.size().rename("slices").to_frame().join(groups[columns].max()).reset_index()


def write_predictions(
    out: Path, task: Task, predicted: tuple[np.ndarray, np.ndarray], sample: Path | None = None
) -> list[Path]:
    """Write OUT in the competition's format, and OUT_wide.csv and OUT_series.csv next to it.

    Args:
        out: the submission to write.
        task: the run and the cache.
        predicted: lines (n,) and probabilities (n, K) from `run_predictions`.
        sample: a sample submission whose rows and order to follow; None for all slices.

    Returns:
        the three files.
    """
    (lines, probabilities), classes = predicted, task.run.data.classes
    submitted = submission(task.cache.table.iloc[lines], probabilities, classes)
    wide = prediction_table(task.cache, lines, probabilities, classes)
    tables = {
        out: submitted if sample is None else order_like_sample(submitted, sample),
        out.with_name(f"{out.stem}_wide.csv"): wide,
        out.with_name(f"{out.stem}_series.csv"): by_series(wide),
    }
    for path, table in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table)
    return list(tables)

"""Turn the probabilities of a study's slices into its answer: by slice, series and study, with decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.neighbours import SERIES
from training.scores.operating import Operating

# Which of validation's thresholds each table is decided with; a study is decided as validation's patients were.
LEVELS = {"slices": "slice", "series": "series", "studies": "patient"}
NUMBERS = {"slices": ["study", "series", "slice"], "series": ["study", "series"], "studies": ["study"]}
UIDS = {
    "slices": ["study_instance_uid", "series_instance_uid", "sop_instance_uid", "frame", "z_mm", "z_norm"],
    "series": ["study_instance_uid", "series_instance_uid"],
    "studies": ["study_instance_uid"],
}
KINDS = ("probability", "calibrated", "threshold", "decision")


@dataclass(frozen=True)
class Answer:
    """What a run says of one or several studies.

    Attributes:
        classes: K names.
        slices, series, studies: a line each, foot to head within a series. Columns: numbers from 1 on, UIDs, and for
            each class <class>_probability, _calibrated, _threshold and _decision (1 positive, 0 negative); the last
            three are empty where the run chose no thresholds on validation. `warning` of a series says why its
            decisions are withheld.
        left_out: path, code, message: a line a file or frame that gave no slice.
        patients: how many the files name.
        lines: (n,) lines of the cache's table, in the order of `slices`.
        undefined: by level and class, why validation could choose no threshold, so that it is 0.5.
    """

    classes: tuple[str, ...]
    slices: pd.DataFrame
    series: pd.DataFrame
    studies: pd.DataFrame
    left_out: pd.DataFrame
    patients: int
    lines: np.ndarray
    undefined: Mapping[str, Mapping[str, str]]

    def table(self, name: str) -> pd.DataFrame:
        """Return one of the three tables by name."""
        tables = {"slices": self.slices, "series": self.series, "studies": self.studies}
        return tables[name]

    def probabilities(self, name: str, kind: str = "probability") -> np.ndarray:
        """Return (n, K) float64 of a table; NaN where there is none."""
        return self.table(name)[[f"{of}_{kind}" for of in self.classes]].to_numpy(float)


def make_answer(
    cache: Cache,
    lines: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    operating: Mapping[str, Operating],
    warnings: Mapping[tuple[str, ...], str],
    left_out: pd.DataFrame,
) -> Answer:
    """Put together the answer to what a cache holds.

    A finding in one slice is a finding of the series and of the study: their probability is the largest of their
    slices'. Each level has a threshold and a calibration of its own: the largest of many is another quantity.

    Args:
        lines: (n,) of the cache's table. probabilities: (n, K) float64.
        operating: by level, what validation chose; empty where it has not been scored.
        warnings: by `series_keys`, why a series should not be believed; it has no part in its study's answer.
    """
    order = _anatomical_order(cache.table.iloc[lines])
    table = _numbered(cache.table.iloc[lines[order]].reset_index(drop=True))
    table["warning"] = [warnings.get(key, "") for key in series_keys(table)]
    of_slices = pd.DataFrame(probabilities[order], columns=list(classes))
    slices = pd.concat([table[NUMBERS["slices"] + UIDS["slices"] + ["warning"]], of_slices], axis=1)
    series = _pooled(table, of_slices, "series")
    series["warning"] = table.groupby(NUMBERS["series"])["warning"].first().to_numpy()
    studies = _pooled(table, of_slices.where(table["warning"] == "", np.nan), "studies")
    return Answer(
        tuple(classes),
        _decided(slices, classes, operating.get(LEVELS["slices"])),
        _decided(series, classes, operating.get(LEVELS["series"])),
        _decided(studies, classes, operating.get(LEVELS["studies"])),
        left_out,
        int(table["patient_id"].nunique()),
        lines[order],
        {level: dict(of.reasons) for level, of in operating.items() if of.reasons},
    )


def series_keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return what tells the series of each line: patient, study and series, since a UID alone may be shared."""
    return list(table[list(SERIES)].itertuples(index=False, name=None))


def _anatomical_order(table: pd.DataFrame) -> np.ndarray:
    """Return the order of lines: by study, series, and foot to head; patients matter where UIDs are shared."""
    names = ["study_instance_uid", "patient_id", "series_instance_uid", "z_norm", "sop_instance_uid", "frame"]
    return table[names].reset_index(drop=True).sort_values(names, kind="stable").index.to_numpy()


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Add the numbers of study, series and slice, from 1 on, to lines in anatomical order."""
    table = table.copy()
    table["study"] = table.groupby(["study_instance_uid", "patient_id"], sort=False).ngroup() + 1
    series = table.groupby(["study", "series_instance_uid"], sort=False).ngroup()
    table["series"] = series - series.groupby(table["study"]).transform("min") + 1
    table["slice"] = table.groupby(NUMBERS["series"]).cumcount() + 1
    return table


def _pooled(table: pd.DataFrame, of_slices: pd.DataFrame, level: str) -> pd.DataFrame:
    """Return a line a group with the largest probability of its slices, NaN where none has one."""
    names = NUMBERS[level] + UIDS[level]
    groups = pd.concat([table[names], of_slices], axis=1).groupby(names, sort=True)
    pooled: pd.DataFrame = groups.max()
    pooled.insert(0, "slices", groups.size())
    return pooled.reset_index()


def _decided(table: pd.DataFrame, classes: Sequence[str], operating: Operating | None) -> pd.DataFrame:
    """Replace each class's column by its probability, calibrated probability, threshold and decision."""
    raw = table[list(classes)].to_numpy(float)
    absent = np.full(len(classes), np.nan)
    thresholds = absent if operating is None else operating.thresholds
    with np.errstate(invalid="ignore"):  # what has no probability has no calibrated one
        calibrated = np.full_like(raw, np.nan) if operating is None else operating.calibrate(raw)
    believed = np.isfinite(raw)
    if "warning" in table:
        believed &= (table["warning"] == "").to_numpy()[:, None]
    decided = np.where(believed & np.isfinite(thresholds), raw >= thresholds, np.nan)
    columns: dict[str, Any] = {}
    for k, name in enumerate(classes):
        columns[f"{name}_probability"] = raw[:, k]
        columns[f"{name}_calibrated"] = calibrated[:, k]
        columns[f"{name}_threshold"] = np.full(len(table), thresholds[k])
        columns[f"{name}_decision"] = pd.array(decided[:, k], dtype="Int8")
    return pd.concat([table.drop(columns=list(classes)), pd.DataFrame(columns)], axis=1)

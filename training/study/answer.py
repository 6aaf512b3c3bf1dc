"""The answer to a study: probabilities and decisions per slice, series and study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.neighbours import SERIES
from training.scores.operating import Operating

# The level of the thresholds for each table. Those for studies were chosen on the patients of validation.
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
    """The answer of a run to one or several studies.

    The three tables have the columns: numbers from 1, UIDs, and for each class <class>_probability, _calibrated,
    _threshold and _decision (1 positive, 0 negative). The last three are empty if the run has no thresholds.

    Attributes:
        classes: K names.
        slices: one line per slice, from foot to head within a series.
        series: one line per series; `warning` gives the reason if its decisions are withheld.
        studies: one line per study.
        left_out: path, code and message of each file or frame without a slice.
        patients: number of patients.
        lines: (n,) lines of the cache's table, in the order of `slices`.
        undefined: level -> class -> why validation could not choose a threshold, which is then 0.5.
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
        """Return the table "slices", "series" or "studies"."""
        tables = {"slices": self.slices, "series": self.series, "studies": self.studies}
        return tables[name]

    def probabilities(self, name: str, kind: str = "probability") -> np.ndarray:
        """Return one of KINDS for each line of a table and each class, (n, K) float64, NaN if missing."""
        return self.table(name)[[f"{of}_{kind}" for of in self.classes]].to_numpy(float)


def make_answer(
    cache: Cache,
    predicted: pd.DataFrame,
    *,
    operating: Mapping[str, Operating],
    warnings: Mapping[tuple[str, ...], str],
    left_out: pd.DataFrame,
) -> Answer:
    """Return the answer to the studies in a cache.

    A series or study has a finding if any of its slices has, so its probability is the largest of its slices'. Each
    level has its own thresholds and calibration, because the maximum over many slices is distributed differently.

    Args:
        cache: the cache of the studies.
        predicted: n probabilities of each class, by name; the index is the lines of the cache's table.
        operating: thresholds and calibration chosen on validation, by level; may be empty.
        warnings: key from `series_keys` -> why the series should not be trusted; its study's answer ignores it.
        left_out: path, code and message of files and frames without a slice.
    """
    lines, classes = predicted.index.to_numpy(), tuple(predicted.columns)
    order = _anatomical_order(cache.table.iloc[lines])
    table = _numbered(cache.table.iloc[lines[order]].reset_index(drop=True))
    table["warning"] = [warnings.get(key, "") for key in series_keys(table)]
    of_slices = predicted.iloc[order].reset_index(drop=True)
    slices = pd.concat([table[NUMBERS["slices"] + UIDS["slices"] + ["warning"]], of_slices], axis=1)
    series = _pooled(table, of_slices, "series")
    series["warning"] = table.groupby(NUMBERS["series"])["warning"].first().to_numpy()
    studies = _pooled(table, of_slices.where(table["warning"] == "", np.nan), "studies")
    return Answer(
        classes,
        _decided(slices, classes, operating.get(LEVELS["slices"])),
        _decided(series, classes, operating.get(LEVELS["series"])),
        _decided(studies, classes, operating.get(LEVELS["studies"])),
        left_out,
        int(table["patient_id"].nunique()),
        lines[order],
        {level: dict(of.reasons) for level, of in operating.items() if of.reasons},
    )


def series_keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return patient, study and series of each line, which identify its series, as its UID alone may be shared."""
    return list(table[list(SERIES)].itertuples(index=False, name=None))


def _anatomical_order(table: pd.DataFrame) -> np.ndarray:
    """Return the order of lines by study, patient (studies may share UIDs), series, and from foot to head."""
    names = ["study_instance_uid", "patient_id", "series_instance_uid", "z_norm", "sop_instance_uid", "frame"]
    return table[names].reset_index(drop=True).sort_values(names, kind="stable").index.to_numpy()


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Return lines in anatomical order with the numbers of study, series and slice, from 1."""
    table = table.copy()
    table["study"] = table.groupby(["study_instance_uid", "patient_id"], sort=False).ngroup() + 1
    series = table.groupby(["study", "series_instance_uid"], sort=False).ngroup()
    table["series"] = series - series.groupby(table["study"]).transform("min") + 1
    table["slice"] = table.groupby(NUMBERS["series"]).cumcount() + 1
    return table


def _pooled(table: pd.DataFrame, of_slices: pd.DataFrame, level: str) -> pd.DataFrame:
    """Return one line per group with the largest probabilities of its slices, NaN if they have none."""
    names = NUMBERS[level] + UIDS[level]
    groups = pd.concat([table[names], of_slices], axis=1).groupby(names, sort=True)
    pooled: pd.DataFrame = groups.max()
    pooled.insert(0, "slices", groups.size())
    return pooled.reset_index()


def _decided(table: pd.DataFrame, classes: Sequence[str], operating: Operating | None) -> pd.DataFrame:
    """Replace the column of each class by its probability, calibrated probability, threshold and decision."""
    raw = table[list(classes)].to_numpy(float)
    absent = np.full(len(classes), np.nan)
    thresholds = absent if operating is None else operating.thresholds
    with np.errstate(invalid="ignore"):  # probabilities may be NaN
        calibrated = np.full_like(raw, np.nan) if operating is None else operating.calibrate(raw)
    trusted = np.isfinite(raw)
    if "warning" in table:
        trusted &= (table["warning"] == "").to_numpy()[:, None]
    decided = np.where(trusted & np.isfinite(thresholds), raw >= thresholds, np.nan)
    columns: dict[str, Any] = {}
    for k, name in enumerate(classes):
        columns[f"{name}_probability"] = raw[:, k]
        columns[f"{name}_calibrated"] = calibrated[:, k]
        columns[f"{name}_threshold"] = np.full(len(table), thresholds[k])
        columns[f"{name}_decision"] = pd.array(decided[:, k], dtype="Int8")
    return pd.concat([table.drop(columns=list(classes)), pd.DataFrame(columns)], axis=1)

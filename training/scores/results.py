"""The results in a run's folder, for the report and the model card."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from training.data.linked import FILE as LINKED
from training.data.linked import read_linked
from training.errors import RunError
from training.run.digests import check
from training.run.documents import read_document
from training.run.log import LOG_COLUMNS
from training.run.runs import open_run
from training.scores.pooling import at_level
from training.scores.predictions import Predictions, read_predictions

# In the order of the report.
NAMES = ("external", "test", "validation")
NUMBERS = tuple(name for name in LOG_COLUMNS if name != "split")


@dataclass(frozen=True)
class Results:
    """The results in a run's folder; what does not exist yet is empty.

    Attributes:
        path: the run's folder.
        level: what a label describes: slice, series, study or patient.
        settings: content of settings.json.
        split: content of split.csv, `patient_id, split`.
        log: content of log.csv, with the columns `log.LOG_COLUMNS` and any others.
        looks: evaluations on test and external sets from looks.csv, with `evaluation.EVALUATION_COLUMNS`.
        linked: slices that several patients share, as returned by `linked.table_of`.
        predictions: name -> predictions at `level`; names are validation, test and external, also with _tta.
        scores: name -> content of scores_<name>.json.
    """

    path: Path
    level: str
    settings: dict[str, Any] = field(repr=False)
    split: pd.DataFrame = field(repr=False)
    log: pd.DataFrame = field(repr=False)
    looks: pd.DataFrame = field(repr=False)
    linked: pd.DataFrame = field(repr=False)
    predictions: dict[str, Predictions] = field(repr=False)
    scores: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the folder without its path, because reports are passed on."""
        return self.path.resolve().name

    @property
    def shown(self) -> str | None:
        """The set that the report shows in full: test if it has been scored, else validation; None without either."""
        return next((name for name in ("test", "validation") if name in self.scores and name in self.predictions), None)


def read_results(run: Path) -> Results:
    """Read the results in a run's folder.

    Raises:
        RunError: if there is no run, or one of its files is damaged.
    """
    if not (run / "settings.json").exists():
        raise RunError(f"{run}: not a run, it has no settings.json; to make one: train run --cache C --out {run}")
    names = [f"{name}{kind}" for name in NAMES for kind in ("", "_tta")]
    predictions = {name: run / f"predictions_{name}.csv" for name in names}
    scores = {name: run / f"scores_{name}.json" for name in names}
    opened = open_run(run)
    level = opened.data.label_level
    if opened.split.exists():
        opened.check_split()
    settings = read_json(run / "settings.json")
    return Results(
        path=run,
        level=level,
        settings=settings,
        split=_read_csv(run / "split.csv", ("patient_id", "split")),
        log=_read_csv(run / "log.csv", LOG_COLUMNS),
        looks=_read_csv(run / "looks.csv", ("time", "what", "commit", "slices")),
        linked=_read_linked(run / LINKED) if (run / LINKED).exists() else pd.DataFrame(),
        predictions={
            name: at_level(read_predictions(file), level) for name, file in predictions.items() if file.exists()
        },
        scores={name: read_json(file) for name, file in scores.items() if file.exists()},
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a run's folder.

    Raises:
        RunError: if the file is missing or damaged.
    """
    name = file.stem.removeprefix("scores_")
    again = f"run: train evaluate --run {file.parent} --split {name.removesuffix('_tta')}"
    again += " --tta" if name.endswith("_tta") else ""
    check(file, again if file.name.startswith("scores_") else "restore it, or start a new run")
    try:
        content = read_document(file)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        return content
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error}); run: train evaluate --run {file.parent}") from error


def _read_linked(file: Path) -> pd.DataFrame:
    check(file, "restore it, or start a new run")
    return read_linked(file)


def _read_csv(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not file.exists():
        return pd.DataFrame(columns=list(columns))
    check(file, "restore it; the run itself does not need it")
    try:
        table = pd.read_csv(file, dtype={"patient_id": str})
        for name in set(columns) & set(NUMBERS):
            table[name] = pd.to_numeric(table[name])
        return table[[*columns, *table.columns.difference(list(columns))]]
    except (ValueError, KeyError, OSError) as error:
        raise RunError(f"{file}: cannot be read ({error}); restore it") from error

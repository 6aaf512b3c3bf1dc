"""The page of an ablation: how much each varied part changes the scores, per class, with intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from training.report import page
from training.report.page import Section
from training.report.scores import SCORES, UNDEFINED
from training.report.sets import signed
from training.scores.compare import CALIBRATED

CHANGED = ("log_loss", CALIBRATED, "roc_auc", "average_precision")
HEADS = SCORES | {CALIBRATED: "log loss, calibrated"}
TITLES = {
    "position": "What the slice position adds",
    "context": "What neighbouring slices add",
    "series": "What a head over the series adds",
}


def write_page(path: Path, table: pd.DataFrame, summary: str, predictions: str) -> None:
    """Write the page of an ablation as one HTML file.

    Args:
        path: the file to write.
        table: the result of `ablate`.
        summary: the differences over the seeds as text; empty with one seed.
        predictions: the subset that was compared, test or validation.
    """
    sections = [
        Section(TITLES[str(vary)], [_table(of) for _, of in lines.groupby(["model", "seed"], sort=False)])
        for vary, lines in table.groupby("vary", sort=False)
    ]
    if summary:
        sections.append(Section("Over the seeds", [page.code(summary)]))
    words = (
        f"Scored on the {predictions} set, slice by slice. Each number is the score of the second run minus that of "
        "the first on the same slices; in small print, its 95 % interval by paired bootstrap over patients. Lower is "
        "better for log loss, higher for the others. Calibrated: after slope and offset of each run's logits were "
        "fitted on validation; a gain that only the uncalibrated log loss shows is a gain in calibration. A star marks "
        "an interval that excludes 0, which happens by chance once in twenty comparisons of equal models."
    )
    foot = page.paragraph("This is research software, not a medical device.")
    path.write_text(page.page("Ablation", [page.paragraph(words, "lead")], sections, foot), encoding="utf-8")


def _table(lines: pd.DataFrame) -> str:
    of = {(line["score"], line["class"]): line for line in lines.to_dict("records")}
    a, b = lines["a"].iloc[0], lines["b"].iloc[0]
    classes = list(dict.fromkeys(lines.loc[lines["score"] == "log_loss", "class"]))
    classes = [name for name in classes if name not in ("micro", "macro")]
    weighted = [_cell(of["weighted_log_loss", "all"]), _cell(of.get((CALIBRATED, "all")))]
    rows = [["all, weighted", *weighted, *[""] * (len(CHANGED) - len(weighted))]]
    rows += [[str(name), *(_cell(of.get((score, name))) for score in CHANGED)] for name in classes]
    caption = f"{lines['model'].iloc[0]}, seed {lines['seed'].iloc[0]}: {b} minus {a}."
    return page.table(caption, ["class", *(HEADS[score] for score in CHANGED)], rows)


def _cell(line: dict[Any, Any] | None) -> str:
    if line is None:  # a run was not scored on validation
        return UNDEFINED
    values: Sequence[float] = [float(line[name]) for name in ("difference", "low", "high")]
    difference, low, high = values
    if difference != difference:
        return UNDEFINED
    star = " *" if low > 0 or high < 0 else ""
    return f"{signed(difference)}{star}\n" + (f"{signed(low)} to {signed(high)}" if low == low else "no interval")

"""Write the page of an ablation: what each thing that was varied changes, by class, with intervals."""

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
    "context": "What the slices beside it add",
    "series": "What a head over the series adds",
}


def write_page(path: Path, table: pd.DataFrame, summary: str, predictions: str) -> None:
    """Write an ablation's page.

    Args:
        table: as `ablate` returns it.
        summary: text of the differences over the seeds; empty with one seed.
        predictions: what was compared, test or validation.
    """
    sections = [
        Section(TITLES[str(vary)], [_table(of) for _, of in lines.groupby(["model", "seed"], sort=False)])
        for vary, lines in table.groupby("vary", sort=False)
    ]
    if summary:
        sections.append(Section("Over the seeds", [page.code(summary)]))
    words = (
        f"Scored on {predictions}, slice by slice. Each number is the score of the second run minus that of the first, "
        "on the same slices; small: 95 % interval by paired bootstrap over patients. Less is better for log loss, more "
        "for the others. Calibrated: with slope and offset of each run's logits as its validation fitted them; what is "
        "gained by log loss alone is calibration. A star: the interval leaves out 0, as one of twenty does by chance "
        "where nothing differs."
    )
    foot = page.paragraph("This is research software and no medical device.")
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

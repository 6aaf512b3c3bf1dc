"""The answer as JSON values, without patient identifiers unless requested."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from training.scores.operating import RULE
from training.study.answer import KINDS, LEVELS, NUMBERS, Answer

FORMAT, FORMAT_VERSION = "ich-answer", 1
NOTICE = "Not a medical device: research software, not designed, tested or approved for patient care."
NO_THRESHOLDS = (
    "none: the run has not been scored on validation, so there are no decisions or calibrated probabilities; "
    "run: train evaluate --run RUN --split validation"
)
IDENTIFIERS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
PLACE = ("frame", "z_mm", "z_norm")
# The pipeline's messages do not quote files, but these two contain the path of another file.
WITHOUT_PATHS = {
    "duplicate": "the same slice as in another file",
    "duplicate_conflict": "the same SOP Instance UID as another file, but different content; none of them is used",
}


def to_document(answer: Answer, model: Mapping[str, Any], *, identifiers: bool) -> dict[str, Any]:
    """Return the answer as values for JSON.

    Studies, series and slices are numbered as in the tables. Files that were left out are counted by reason. With
    `identifiers`, UIDs and paths are added.
    """
    document: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "notice": NOTICE,
        "run": dict(model),
        "classes": list(answer.classes),
        "thresholds_from": RULE if _has_thresholds(answer) else NO_THRESHOLDS,
        "thresholds_undefined": {level: dict(of) for level, of in answer.undefined.items()},
        "patients": answer.patients,
        **{name: _lines(answer, name, identifiers=identifiers) for name in LEVELS},
        "left_out": left_out(answer.left_out),
    }
    if identifiers:
        document["left_out_files"] = answer.left_out.to_dict("records")
    return document


def left_out(rejects: pd.DataFrame) -> list[dict[str, Any]]:
    """Return code, message and number of files for each reason for which files were left out, without paths."""
    if rejects.empty:
        return []
    groups = rejects.groupby("code")
    return [
        {"code": str(code), "message": WITHOUT_PATHS.get(str(code), str(of["message"].iloc[0])), "files": len(of)}
        for code, of in groups
    ]


def _has_thresholds(answer: Answer) -> bool:
    return bool(answer.studies[f"{answer.classes[0]}_threshold"].notna().any())


def _lines(answer: Answer, name: str, *, identifiers: bool) -> list[dict[str, Any]]:
    table = answer.table(name)
    kept = [*NUMBERS[name], *(IDENTIFIERS if identifiers else ()), *PLACE, "slices", "warning"]
    lines = []
    for record in table.to_dict("records"):
        line = {key: _plain(record[key]) for key in kept if key in record}
        line["classes"] = {of: {kind: _plain(record[f"{of}_{kind}"]) for kind in KINDS} for of in answer.classes}
        lines.append(line)
    return lines


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value

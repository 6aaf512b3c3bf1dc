"""The sections of the report with scores, curves, and decisions at the chosen thresholds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.report import figures, page
from training.report.page import Section
from training.report.palette import colours
from training.scores.bands import precision_recall_band, reliability, roc_band
from training.scores.bootstrap import MIN_PATIENTS
from training.scores.evaluation import read_operating
from training.scores.headline import headline
from training.scores.metrics import SOFT_THRESHOLD
from training.scores.pooling import patient_groups
from training.scores.predictions import Predictions
from training.scores.ranking import Ranking
from training.scores.results import Results
from training.words import counted

UNDEFINED = "\N{EN DASH}"
SCORES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
RULES = {"at_threshold": "Youden", "at_f1_threshold": "F1"}
DECISIONS = ("recall", "specificity", "precision", "f1")
CALIBRATION = ("log_loss", "brier", "calibration_error")


def set_words(name: str) -> str:
    """Return a phrase for a scored set, such as "the test set with TTA" for test_tta."""
    subset, _, tta = name.partition("_")
    return f"the {subset} set with TTA" if tta else f"the {subset} set"


def number(value: float | None, digits: int = 3) -> str:
    """Return a score as text, a dash if it is undefined."""
    return UNDEFINED if value is None or np.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float | None, span: list[float] | None, digits: int = 3) -> str:
    """Return a score as text, with its interval, if any, on a second line."""
    text = number(value, digits)
    return text if value is None or span is None else f"{text}\n{span[0]:.{digits}f} to {span[1]:.{digits}f}"


def not_scored(results: Results, title: str) -> Section:
    """Return the section to show if the run has no predictions or scores yet."""
    words = f"The run has no scores yet. Run: train evaluate --run {results.name} --split validation"
    if len(results.split) and set(results.split["split"]) == {"train"}:
        words = "The run has no scores: all its patients are in the training set."
    return Section(title, [page.paragraph(words, "notice")])


def scores(results: Results) -> Section:
    """Return the section with the scores per class, and those of series and patients."""
    if (name := results.shown) is None:
        return not_scored(results, "Scores")
    content = results.scores[name]
    drawn = content.get("bootstrap")
    caption = (
        f"Table 2. Scores on {set_words(name)}, {results.level} by {results.level}; precision, recall, specificity and "
        "F1 at a threshold of 0.5."
    )
    if drawn:
        caption += (
            f" In small print: 95 % intervals from {drawn['resamples']:,} bootstrap draws of "
            f"{counted(drawn['patients'], 'patient')}. There is none with fewer than {MIN_PATIENTS} patients, or "
            "if the score is undefined in more than one draw in twenty."
        )
    blocks = [
        page.table(caption, ["class", "positive / all", *SCORES.values()], _score_rows(content)),
        *_undefined(content),
    ]
    if content.get("levels"):
        blocks.append(_levels_table(content))
    return Section("Scores", blocks)


def _score_rows(content: Mapping[str, Any]) -> list[list[str]]:
    spans = content.get("intervals", {})
    rows = []
    for name, of in content["classes"].items():
        span = spans.get("classes", {}).get(name, {})
        cells = [with_interval(of.get(key), span.get(key)) for key in SCORES]
        rows.append([name, f"{of['positives']:,} / {of['n']:,}", *cells])
    for kind in ("micro", "macro"):
        of, span = content[kind], spans.get(kind, {})
        cells = [with_interval(of[key], span.get(key)) if key in of else "" for key in SCORES]
        rows.append([f"{kind} average", "", *cells])
    return rows


def _undefined(content: Mapping[str, Any]) -> list[str]:
    classes: dict[tuple[str, str], list[str]] = {}
    for name, of in content["classes"].items():
        for key, reason in of.get("undefined", {}).items():
            classes.setdefault((SCORES.get(key, key), reason), []).append(name)
    reasons = [f"{score} of {', '.join(names)} ({reason})" for (score, reason), names in classes.items()]
    return [page.paragraph("Undefined: " + "; ".join(reasons) + ".", "lead")] if reasons else []


def _levels_table(content: Mapping[str, Any]) -> str:
    levels = {content.get("level", "slice"): content, **content["levels"]}
    classes = list(content["classes"])
    rows = []
    for level, of in levels.items():
        spans = of["intervals"]
        cells = [with_interval(of["weighted_log_loss"], spans["weighted_log_loss"])]
        cells += [with_interval(of["classes"][name]["roc_auc"], spans["classes"][name]["roc_auc"]) for name in classes]
        rows.append([level, f"{headline(of).n:,}", *cells])
    head = ["level", "count", "weighted log loss", *classes]
    *above, last = levels
    caption = (
        f"Table 3. ROC AUC per class at {', '.join(above)} and {last} level. A series or patient has a finding if any "
        "of its slices has it. Its probability is the highest of its slices', which ranks well but is too high as a "
        "probability, so log losses can only be compared within a level."
    )
    return page.table(caption, head, rows)


def curves(results: Results) -> Section:
    """Return the section with ROC and precision-recall curves, together and per class, and reliability."""
    if (name := results.shown) is None:
        return not_scored(results, "Curves")
    known = results.predictions[name]
    colour = colours(known.classes)
    groups, patients = patient_groups(known)
    roc, precision_recall, panels = [], [], []
    one = np.ones(patients, np.int64)
    for k, label in enumerate(known.classes):
        ranking = Ranking(known.labels[:, k], known.probabilities[:, k], groups)
        area, average = ranking.scores(one)
        if np.isnan(area):
            continue
        roc.append((f"{label}  {area:.3f}", *ranking.roc(one), colour[label]))
        precision_recall.append((f"{label}  {average:.3f}", *_precision_recall(ranking, one), colour[label]))
        panels += _class_panels(results, k, ranking, (area, average), colour[label])
    overview = [
        (
            figures.draw_curves(roc, "1 \N{MINUS SIGN} specificity", "recall (sensitivity)", "ROC", diagonal=True),
            "ROC per class",
        ),
        (
            figures.draw_curves(precision_recall, "recall", "precision", "Precision-recall", diagonal=False),
            "precision-recall per class",
        ),
    ]
    if not panels:
        words = f"No curves: no class has both positive and negative labels on {set_words(name)}."
        return Section("Curves", [page.paragraph(words, "notice")])
    first = (
        f"Figure 1. ROC and precision-recall curves on {set_words(name)}, {results.level} by {results.level}; the "
        "legends give ROC AUC and average precision."
    )
    second = (
        "Figure 2. The same per class, with pointwise 95 % intervals by bootstrap over patients (shaded), and "
        "reliability: the share of slices with the finding, among slices of similar probability, with its interval. "
        "Diamonds: probabilities calibrated on validation. Grey bars: number of slices, on a logarithmic scale."
    )
    return Section("Curves", [page.figure(overview, first, "22rem"), page.figure(panels, second, "19rem")])


def _class_panels(
    results: Results, k: int, ranking: Ranking, areas: tuple[float, float], colour: str
) -> list[tuple[bytes, str]]:
    known = results.predictions[results.shown or ""]
    label = known.classes[k]
    groups, patients = patient_groups(known)
    one = np.ones(patients, np.int64)
    spans = results.scores[results.shown or ""].get("intervals", {}).get("classes", {}).get(label, {})
    auc, average = (
        _note(value, spans.get(key)) for value, key in zip(areas, ("roc_auc", "average_precision"), strict=True)
    )
    plain = reliability(known.labels[:, k], known.probabilities[:, k], groups, patients)
    operating = read_operating(results.path).get(results.level)
    calibrated = operating and reliability(
        known.labels[:, k], operating.calibrate(known.probabilities)[:, k], groups, patients
    )
    roc_labels = ("1 \N{MINUS SIGN} specificity", "recall", label, f"AUC {auc}")
    return [
        (
            figures.draw_band(ranking.roc(one), roc_band(ranking, patients), roc_labels, colour, diagonal=True),
            f"ROC curve of {label}",
        ),
        (
            figures.draw_band(
                _precision_recall(ranking, one),
                precision_recall_band(ranking, patients),
                ("recall", "precision", label, f"AP {average}"),
                colour,
                diagonal=False,
            ),
            f"precision-recall curve of {label}",
        ),
        (figures.draw_reliability(plain, calibrated or None, label, colour), f"reliability of {label}"),
    ]


def _precision_recall(ranking: Ranking, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision, extended to recall 0 at the precision of the highest threshold.

    The intervals extend in the same way. Otherwise the curve of a model without errors would be a single point.
    """
    recall, precision = ranking.precision_recall(weights)
    return np.append(0.0, recall), np.append(precision[:1], precision)


def _note(value: float, span: list[float] | None) -> str:
    return number(value) + (f" ({span[0]:.3f} to {span[1]:.3f})" if span else "")


def decisions(results: Results) -> Section:
    """Return the section with the confusion counts and rates at the thresholds chosen on validation, by both rules."""
    title = "Decisions"
    if (name := results.shown) is None:
        return not_scored(results, title)
    content = results.scores[name]
    if "at_threshold" not in content:
        command = f"train evaluate --run {results.name}"
        then = f", then: {command}" if name == "test" else ""  # the thresholds apply when test is scored again
        words = f"No thresholds were chosen. Run: {command} --split validation{then}"
        if not (results.split["split"] == "validation").any():
            words = "No thresholds were chosen: the run has no validation set to choose them on."
        return Section(title, [page.paragraph(words, "notice")])
    known = results.predictions[name]
    by_rule = [_confusion(known, content[key], rule) for key, rule in RULES.items() if key in content]
    rows = [row for of_class in zip(*by_rule, strict=True) for row in of_class]
    head = [
        "class",
        "chosen by",
        "threshold",
        "true positives",
        "false negatives",
        "false positives",
        "true negatives",
        *(SCORES[key] for key in DECISIONS),
    ]
    caption = (
        f"Table 4. Confusion on {set_words(name)} at two thresholds chosen on validation: the one with the largest "
        "recall + specificity \N{MINUS SIGN} 1 (Youden's index), which predictions for a study use, and the one with "
        "the largest expected F1. In small print: 95 % intervals."
    )
    return Section(title, [page.table(caption, head, rows), _calibration_table(content, name)])


def _confusion(known: Predictions, at: Mapping[str, Any], rule: str) -> list[list[str]]:
    """Return rows of class, rule, threshold, counts and rates; the last row holds the means over the classes."""
    rows = []
    for k, label in enumerate(known.classes):
        threshold = at["thresholds"][label]
        labelled = ~np.isnan(known.labels[:, k])
        y, hard = known.labels[labelled, k] >= SOFT_THRESHOLD, known.probabilities[labelled, k] >= threshold
        counts = [int((a & b).sum()) for a, b in ((y, hard), (y, ~hard), (~y, hard), (~y, ~hard))]
        of, span = at["classes"][label], at["intervals"]["classes"][label]
        cells = [with_interval(of[key], span[key]) for key in DECISIONS]
        rows.append([label, rule, f"{threshold:.3g}", *(f"{count:,}" for count in counts), *cells])
    macro, spans = at["macro"], at["intervals"]["macro"]
    means = [with_interval(macro[key], spans.get(key)) if key in macro else "" for key in DECISIONS]
    return [*rows, ["mean", rule, *[""] * 5, *means]]


def _calibration_table(content: Mapping[str, Any], name: str) -> str:
    """Return the table of log loss, Brier score and calibration error before and after calibration."""
    calibrated, rows = content["calibrated"], []
    for label in content["classes"]:
        cells = [
            with_interval(of["classes"][label][key], of.get("intervals", {}).get("classes", {}).get(label, {}).get(key))
            for key in CALIBRATION
            for of in (content, calibrated)
        ]
        rows.append([label, *cells])
    head = [words for key in CALIBRATION for words in (SCORES[key], "calibrated")]
    caption = (
        f"Table 5. Calibration on {set_words(name)}: scores of the predicted probabilities, and after Platt "
        "calibration fitted on validation. In small print: 95 % intervals."
    )
    return page.table(caption, ["class", *head], rows)

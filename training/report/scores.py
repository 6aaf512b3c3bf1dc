"""This file writes the report's sections on how well a run does: scores, curves, decisions, subgroups, TTA."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from training.report import figures, page
from training.report.page import Section
from training.scores.bands import precision_recall_band, reliability, roc_band
from training.scores.evaluation import read_operating, score_intervals
from training.scores.metrics import score
from training.scores.pooling import patient_groups
from training.scores.predictions import Predictions
from training.scores.ranking import Ranking
from training.scores.results import Results

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
DECISIONS = ("recall", "specificity", "precision", "f1")
POSITION_BINS = 10
GROUP_RESAMPLES = 300
SETS = {
    "validation": "validation",
    "test": "test",
    "external": "external set",
    "validation_tta": "validation, TTA",
    "test_tta": "test, TTA",
    "external_tta": "external set, TTA",
}


def number(value: float | None, digits: int = 3) -> str:
    """Return a score as text, a dash where it is undefined."""
    return UNDEFINED if value is None or np.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float | None, span: list[float] | None, digits: int = 3) -> str:
    """Return a score as text, with its interval as a second line where there is one."""
    text = number(value, digits)
    return text if value is None or span is None else f"{text}\n{span[0]:.{digits}f} to {span[1]:.{digits}f}"


def not_there(results: Results, title: str) -> Section:
    """Return the section that stands where the run has no predictions or scores yet."""
    way_out = f"train evaluate --run {results.name} --split validation"
    return Section(title, [page.paragraph(f"The run has no scores yet. Run: {way_out}", "notice")])


def scores(results: Results) -> Section:
    """The scores by class with intervals, and those of series and patients."""
    if (name := results.shown) is None:
        return not_there(results, "Scores")
    content = results.scores[name]
    drawn = content.get("bootstrap")
    caption = (
        f"Table 2. Scores on {SETS[name]}, slice by slice; precision, recall, specificity, F1 at a probability of 0.5."
    )
    if drawn:
        caption += f" Small: 95 % intervals, {drawn['resamples']:,} bootstrap draws of {drawn['patients']:,} patients."
    blocks = [
        page.table(caption, ["class", "positive / all", *SCORES.values()], _score_rows(content)),
        *_undefined(content),
    ]
    if "levels" in content:
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
    reasons = [
        f"{name}: {SCORES.get(key, key)}, {reason}"
        for name, of in content["classes"].items()
        for key, reason in of.get("undefined", {}).items()
    ]
    return [page.paragraph("Not defined: " + "; ".join(reasons) + ".", "lead")] if reasons else []


def _levels_table(content: Mapping[str, Any]) -> str:
    levels = {"slice": content, **content["levels"]}
    classes = list(content["classes"])
    rows = []
    for level, of in levels.items():
        spans = of["intervals"]
        cells = [with_interval(of["weighted_log_loss"], spans["weighted_log_loss"])]
        cells += [with_interval(of["classes"][name]["roc_auc"], spans["classes"][name]["roc_auc"]) for name in classes]
        rows.append([level, f"{of['classes'][classes[-1]]['n']:,}", *cells])
    head = ["level", "count", "weighted log loss", *classes]
    caption = (
        "Table 3. ROC AUC by class at slice, series and patient level. A series or patient has a finding if any of its "
        "slices has; its probability is the largest of its slices', which ranks well but is too high as a probability: "
        "compare log losses within a level only."
    )
    return page.table(caption, head, rows)


def curves(results: Results) -> Section:
    """ROC and precision-recall curves of all classes, then each with intervals, and reliability."""
    if (name := results.shown) is None:
        return not_there(results, "Curves")
    known = results.predictions[name]
    colour = figures.colours(known.classes)
    groups, patients = patient_groups(known)
    roc, precision_recall, panels = [], [], []
    one = np.ones(patients, np.int64)
    for k, label in enumerate(known.classes):
        ranking = Ranking(known.labels[:, k], known.probabilities[:, k], groups)
        area, average = ranking.scores(one)
        if np.isnan(area):
            continue
        roc.append((f"{label}  {area:.3f}", *ranking.roc(one), colour[label]))
        precision_recall.append((f"{label}  {average:.3f}", *ranking.precision_recall(one), colour[label]))
        panels += _class_panels(results, k, ranking, (area, average), colour[label])
    overview = [
        (figures.draw_curves(roc, "1 \N{MINUS SIGN} specificity", "recall (sensitivity)", "ROC", True), "ROC by class"),
        (
            figures.draw_curves(precision_recall, "recall", "precision", "Precision-recall", False),
            "precision-recall by class",
        ),
    ]
    first = (
        f"Figure 1. ROC and precision-recall curves on {SETS[name]}, slice by slice; beside each name ROC AUC or "
        "average precision."
    )
    second = (
        "Figure 2. The same by class, shaded: pointwise 95 % interval by bootstrap over patients; and reliability: of "
        "slices with like probability, the share that has the finding, with its interval. Diamonds: probabilities "
        "calibrated on validation. Grey columns: how many slices there are, on a logarithmic scale."
    )
    return Section("Curves", [_figure(overview, first, "22rem"), _figure(panels, second, "19rem")])


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
    operating = read_operating(results.path).get("slice")
    calibrated = operating and reliability(
        known.labels[:, k], operating.calibrate(known.probabilities)[:, k], groups, patients
    )
    roc_labels = ("1 \N{MINUS SIGN} specificity", "recall", label)
    return [
        (
            figures.draw_band(ranking.roc(one), roc_band(ranking, patients), roc_labels, f"AUC {auc}", colour, True),
            f"ROC curve of {label}",
        ),
        (
            figures.draw_band(
                ranking.precision_recall(one),
                precision_recall_band(ranking, patients),
                ("recall", "precision", label),
                f"AP {average}",
                colour,
                False,
            ),
            f"precision-recall curve of {label}",
        ),
        (figures.draw_reliability(plain, calibrated or None, label, colour), f"reliability of {label}"),
    ]


def _note(value: float, span: list[float] | None) -> str:
    return number(value) + (f" ({span[0]:.3f} to {span[1]:.3f})" if span else "")


def _figure(panels: list[tuple[bytes, str]], caption: str, width: str) -> str:
    return page.figure([(page.data_address(svg, "image/svg+xml"), words) for svg, words in panels], caption, width)


def decisions(results: Results) -> Section:
    """Confusion and its rates at the thresholds that validation chose."""
    title = "Decisions"
    if (name := results.shown) is None:
        return not_there(results, title)
    at = results.scores[name].get("at_threshold")
    if at is None:
        words = f"No thresholds were chosen. Run: train evaluate --run {results.name} --split validation"
        return Section(title, [page.paragraph(words, "notice")])
    known = results.predictions[name]
    rows = []
    for k, label in enumerate(known.classes):
        threshold = at["thresholds"][label]
        labelled = ~np.isnan(known.labels[:, k])
        y, hard = known.labels[labelled, k] == 1, known.probabilities[labelled, k] >= threshold
        counts = [int((a & b).sum()) for a, b in ((y, hard), (y, ~hard), (~y, hard), (~y, ~hard))]
        of, span = at["classes"][label], at["intervals"]["classes"][label]
        cells = [with_interval(of[key], span[key]) for key in DECISIONS]
        rows.append([label, f"{threshold:.3g}", *(f"{count:,}" for count in counts), *cells])
    head = [
        "class",
        "threshold",
        "found",
        "missed",
        "false alarms",
        "rightly none",
        *(SCORES[key] for key in DECISIONS),
    ]
    caption = (
        f"Table 4. Confusion on {SETS[name]} at the thresholds with the largest recall + specificity \N{MINUS SIGN} 1 "
        "(Youden's index) on validation, applied unchanged. Small: 95 % intervals."
    )
    return Section(title, [page.table(caption, head, rows)])


def subgroups(results: Results) -> Section:
    """Scores against slice position, and in groups of slices."""
    if (name := results.shown) is None:
        return not_there(results, "Subgroups")
    known, weights = results.predictions[name], _class_weights(results)
    bins = np.minimum((known.slices["z_norm"].to_numpy() * POSITION_BINS).astype(int), POSITION_BINS - 1)
    found = [_group_scores(known, bins == b, weights) for b in range(POSITION_BINS)]
    centres = (np.arange(POSITION_BINS) + 0.5) / POSITION_BINS
    main = known.classes[-1]
    panels = []
    for key, words in (("loss", "weighted log loss"), ("auc", f"ROC AUC of {main}")):
        values, low, high = np.array(
            [[of[key] or np.nan, *(of[f"{key}_interval"] or (np.nan, np.nan))] for of in found]
        ).T
        panels.append(
            (
                figures.draw_by_position(centres, values, low, high, words, words[0].upper() + words[1:]),
                f"{words} by position",
            )
        )
    share = np.array([of["prevalence"] if of["prevalence"] is not None else np.nan for of in found])
    panels.append(
        (figures.draw_by_position(centres, share, share, share, "share", f"Prevalence of {main}"), "prevalence")
    )
    caption = (
        f"Figure 3. Scores on {SETS[name]} against the slice's position in its series, in tenths, with 95 % intervals. "
        "A loss of 0 is right and sure; where bleeds are rare the loss is small of itself."
    )
    return Section("Subgroups", [_figure(panels, caption, "20rem"), _group_table(known, weights, name)])


def _class_weights(results: Results) -> list[float]:
    known = results.predictions[results.shown or ""]
    return results.settings.get("data", {}).get("class_weights") or [1.0] * len(known.classes)


def _group_scores(known: Predictions, chosen: np.ndarray, weights: list[float]) -> dict[str, Any]:
    part = select(known, chosen)
    main = known.classes[-1]
    if not len(part):
        return dict.fromkeys(("loss", "loss_interval", "auc", "auc_interval", "average", "prevalence"))
    content = score(part.labels, part.probabilities, part.classes, weights)
    spans = score_intervals(part, weights, np.full(len(part.classes), 0.5), GROUP_RESAMPLES, 0)
    of = content["classes"][main]
    return {
        "loss": content["weighted_log_loss"],
        "loss_interval": spans["weighted_log_loss"],
        "auc": of["roc_auc"],
        "auc_interval": spans["classes"][main]["roc_auc"],
        "average": of["average_precision"],
        "prevalence": of["prevalence"],
    }


def select(known: Predictions, chosen: np.ndarray) -> Predictions:
    """Return the lines where `chosen`, (N,) bool, is true."""
    return replace(
        known,
        slices=known.slices[chosen].reset_index(drop=True),
        labels=known.labels[chosen],
        probabilities=known.probabilities[chosen],
    )


def _group_table(known: Predictions, weights: list[float], name: str) -> str:
    z_norm = known.slices["z_norm"].to_numpy()
    size = known.slices.groupby("series_instance_uid")["row"].transform("size").to_numpy()
    short, long = np.quantile(size, [1 / 3, 2 / 3]) if len(size) else (0, 0)
    groups = {
        "all": np.ones(len(known), bool),
        "lower third": z_norm < 1 / 3,
        "middle third": (z_norm >= 1 / 3) & (z_norm < 2 / 3),
        "upper third": z_norm >= 2 / 3,
        f"series of up to {short:.0f} slices": size <= short,
        f"of {short + 1:.0f} to {long:.0f}": (size > short) & (size <= long),
        f"of {long + 1:.0f} or more": size > long,
    }
    main = known.classes[-1]
    rows = []
    for words, chosen in groups.items():
        if not chosen.any():
            continue
        of = _group_scores(known, chosen, weights)
        rows.append(
            [
                words,
                f"{int(chosen.sum()):,}",
                f"{known.slices['patient_id'][chosen].nunique():,}",
                number(of["prevalence"]),
                with_interval(of["loss"], of["loss_interval"]),
                with_interval(of["auc"], of["auc_interval"]),
                number(of["average"]),
            ]
        )
    head = ["slices", "count", "patients", f"prevalence of {main}", "weighted log loss", f"ROC AUC of {main}"]
    caption = (
        f"Table 5. Subgroups of {SETS[name]}. The cache keeps no age, sex, or scanner, so none can be shown; "
        "whoever has them can join them to the predictions by image_id."
    )
    return page.table(caption, [*head, f"average precision of {main}"], rows)


def other_sets(results: Results) -> Section:
    """Every set that was scored beside each other: validation and test, with TTA, and external ones."""
    rows = []
    for name, content in results.scores.items():
        spans = content.get("intervals", {})
        main = list(content["classes"])[-1]
        of, span = content["classes"][main], spans.get("classes", {}).get(main, {})
        rows.append(
            [
                SETS[name],
                f"{of['n']:,}",
                with_interval(content["weighted_log_loss"], spans.get("weighted_log_loss"), 4),
                with_interval(of["roc_auc"], span.get("roc_auc")),
                with_interval(of["average_precision"], span.get("average_precision")),
                with_interval(content["macro"]["f1"], spans.get("macro", {}).get("f1")),
            ]
        )
    if not rows:
        return not_there(results, "Sets and TTA")
    head = ["set", "slices", "weighted log loss", "ROC AUC of any", "average precision of any", "macro F1 at 0.5"]
    caption = "Table 6. All sets that were scored."
    blocks = [page.table(caption, head, rows)]
    for name in ("test", "validation"):
        if {name, f"{name}_tta"} <= results.scores.keys():
            change = results.scores[f"{name}_tta"]["weighted_log_loss"] - results.scores[name]["weighted_log_loss"]
            words = f"TTA changes the weighted log loss on {name} by {change:+.4f}; train compare gives the interval."
            blocks.append(page.paragraph(words))
    if not any(name.endswith("_tta") for name in results.scores):
        blocks.append(page.paragraph(f"TTA was not scored. Run: train evaluate --run {results.name} --tta", "lead"))
    if "external" in results.scores:
        blocks.append(
            page.paragraph("The external set is another cache than the run's; none of its patients was in training.")
        )
    return Section("Sets and TTA", blocks)

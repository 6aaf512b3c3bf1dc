"""The section of the report with the scores of subgroups: by position, series length and source."""

from dataclasses import replace
from typing import Any

import numpy as np

from training.data.neighbours import SERIES
from training.report import figures, page
from training.report.page import Section
from training.report.scores import not_scored, number, set_words, with_interval
from training.scores.evaluation import score_intervals
from training.scores.headline import headline, main_class
from training.scores.metrics import score
from training.scores.pooling import PLURAL
from training.scores.predictions import Predictions
from training.scores.results import Results
from training.words import counted

POSITION_BINS = 10
GROUP_RESAMPLES = 300


def subgroups(results: Results) -> Section:
    """Return the section with scores against the slice position and for groups of slices."""
    if (name := results.shown) is None:
        return not_scored(results, "Subgroups")
    known, weights = results.predictions[name], _class_weights(results)
    if results.level != "slice":
        words = f"The labels are for {PLURAL[results.level]}, so there are no scores by slice position."
        return Section("Subgroups", [page.paragraph(words), _group_table(results, weights, name)])
    bins = np.minimum((known.slices["z_norm"].to_numpy() * POSITION_BINS).astype(int), POSITION_BINS - 1)
    found = [_group_scores(known, bins == b, weights) for b in range(POSITION_BINS)]
    centres = (np.arange(POSITION_BINS) + 0.5) / POSITION_BINS
    main = _main_words(known)
    panels, left_out = [], []
    for key, words, most in (("loss", "weighted log loss", np.inf), ("auc", f"ROC AUC {main}", 1.0)):
        values, low, high = np.array(
            [[_or_nan(of[key]), *(of[f"{key}_interval"] or (np.nan, np.nan))] for of in found]
        ).T
        if np.isnan(values).all():
            left_out.append(words)
            continue
        drawn = figures.draw_by_position(centres, values, (low, high), (words, words[0].upper() + words[1:]), most=most)
        panels.append((drawn, f"{words} by position"))
    share = np.array([_or_nan(of["prevalence"]) for of in found])
    panels.append(
        (
            figures.draw_by_position(centres, share, (share, share), ("share", f"Prevalence {main}"), most=1.0),
            "prevalence",
        )
    )
    caption = (
        f"Figure 3. Scores on {set_words(name)} against the slice's position in its series, in tenths, with 95 % "
        "intervals. A loss of 0 is correct and certain; where bleeds are rare, the loss is low for any model."
    )
    if left_out:
        caption += f" Not drawn, because it is undefined in every tenth: {', '.join(left_out)}."
    return Section("Subgroups", [page.figure(panels, caption, "20rem"), _group_table(results, weights, name)])


def _main_words(known: Predictions) -> str:
    name = main_class(known.classes)
    return f"of {name}" if name else "mean over the classes"


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _class_weights(results: Results) -> list[float]:
    known = results.predictions[results.shown or ""]
    return results.settings.get("data", {}).get("class_weights") or [1.0] * len(known.classes)


def _group_scores(known: Predictions, chosen: np.ndarray, weights: list[float]) -> dict[str, Any]:
    part = select(known, chosen)
    if not len(part):
        return dict.fromkeys(("loss", "loss_interval", "auc", "auc_interval", "average", "prevalence"))
    content = score(part.labels, part.probabilities, part.classes, weights)
    spans = score_intervals(part, weights, np.full(len(part.classes), 0.5), GROUP_RESAMPLES, 0)
    main = headline(content | {"intervals": spans})
    return {
        "loss": content["weighted_log_loss"],
        "loss_interval": spans["weighted_log_loss"],
        "auc": main.scores["roc_auc"],
        "auc_interval": main.spans.get("roc_auc"),
        "average": main.scores["average_precision"],
        "prevalence": main.scores["prevalence"],
    }


def select(known: Predictions, chosen: np.ndarray) -> Predictions:
    """Return the predictions of the lines where `chosen`, (N,) bool, is true."""
    return replace(
        known,
        slices=known.slices[chosen].reset_index(drop=True),
        labels=known.labels[chosen],
        probabilities=known.probabilities[chosen],
    )


def _group_table(results: Results, weights: list[float], name: str) -> str:
    known = results.predictions[name]
    z_norm = known.slices["z_norm"].to_numpy()
    size = known.slices.groupby(SERIES)["row"].transform("size").to_numpy()
    short, long = np.quantile(size, [1 / 3, 2 / 3]) if len(size) else (0, 0)
    groups = {f"all, from {_source(results, name)}": known}
    by_slice = {
        "lower third": select(known, z_norm < 1 / 3),
        "middle third": select(known, (z_norm >= 1 / 3) & (z_norm < 2 / 3)),
        "upper third": select(known, z_norm >= 2 / 3),
        f"series of up to {counted(round(short), 'slice')}": select(known, size <= short),
        f"series of {short + 1:.0f} to {long:.0f}": select(known, (size > short) & (size <= long)),
        f"series of {long + 1:.0f} or more": select(known, size > long),
    }
    if results.level == "slice":
        groups |= by_slice
    if "external" in results.predictions:
        groups[f"external, from {_source(results, 'external')}"] = results.predictions["external"]
    main = _main_words(known)
    head = [PLURAL[results.level], "count", "patients", f"prevalence {main}", "weighted log loss", f"ROC AUC {main}"]
    caption = (
        f"Table 6. Subgroups of {set_words(name)}, and other sources if any. Age, sex and scanner are not in the "
        "cache; if you have them, join them to the predictions by image_id."
    )
    rows = [_group_row(words, part, weights) for words, part in groups.items() if len(part)]
    return page.table(caption, [*head, f"average precision {main}"], rows)


def _group_row(words: str, part: Predictions, weights: list[float]) -> list[str]:
    of = _group_scores(part, np.ones(len(part), bool), weights)
    return [
        words,
        f"{len(part):,}",
        f"{part.slices['patient_id'].nunique():,}",
        number(of["prevalence"]),
        with_interval(of["loss"], of["loss_interval"]),
        with_interval(of["auc"], of["auc_interval"]),
        number(of["average"]),
    ]


def _source(results: Results, name: str) -> str:
    return results.scores.get(name, {}).get("source", {}).get("dataset", "the run's cache")

"""This file writes a run's report: one page that shows what the run was, how well it did, and where it fails."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training import figures, page
from training.cache import Cache
from training.errors import RunError
from training.page import Section
from training.pictures import read_images, window_pictures
from training.predictions import Predictions, read_predictions
from training.ranking import Ranking
from training.split import SIDES

UNDEFINED = "\N{EN DASH}"
NOT_A_DEVICE = "This is research software and no medical device: it must not be used to diagnose or to treat anybody."
TABLE_SCORES = {
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
SHEET_SLICES = 12


@dataclass(frozen=True)
class Results:
    """What lies in a run's folder; whatever is not there yet is empty.

    Attributes:
        settings: settings.json.
        split: `patient_id, split`.
        log: as runs.LOG_COLUMNS has it.
        predictions, scores: by side of the split.
    """

    path: Path
    settings: dict[str, Any] = field(repr=False)
    split: pd.DataFrame = field(repr=False)
    log: pd.DataFrame = field(repr=False)
    predictions: dict[str, Predictions] = field(repr=False)
    scores: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def shown(self) -> str | None:
        """The side that the report shows: test where it has been looked at, else validation."""
        return next((side for side in ("test", "validation") if side in self.scores and side in self.predictions), None)


def read_results(run: Path) -> Results:
    """Read what a run has left behind.

    Raises:
        RunError: there is no run, or one of its files is damaged.
    """
    if not (run / "settings.json").exists():
        raise RunError(
            f"{run}: no run here, it has no settings.json; runs are made by: train run --cache C --out {run}"
        )
    sides = [side for side in SIDES if (run / f"predictions_{side}.csv").exists()]
    return Results(
        path=run,
        settings=_read_json(run / "settings.json"),
        split=_read_csv(run / "split.csv", ("patient_id", "split")),
        log=_read_csv(run / "log.csv", ("step", "epoch")),
        predictions={side: read_predictions(run / f"predictions_{side}.csv") for side in sides},
        scores={
            side: _read_json(run / f"scores_{side}.json") for side in SIDES if (run / f"scores_{side}.json").exists()
        },
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error}); run: train evaluate --run {file.parent}") from error


def _read_csv(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not file.exists():
        return pd.DataFrame(columns=list(columns))
    try:
        return pd.read_csv(file, dtype={"patient_id": str})
    except ValueError as error:
        raise RunError(f"{file}: cannot be read ({error}); restore it") from error


def write_report(run: Path, cache: Cache | None) -> Path:
    """Write run/report.html from the run's folder.

    Args:
        cache: where the slices are shown from; without it the report says that it has no pictures.

    Raises:
        RunError: there is no run, or one of its files is damaged.
    """
    results = read_results(run)
    sections = [
        summary(results),
        training(results),
        scores(results),
        curves(results),
        sheet(results, cache),
        settings(results),
    ]
    config = results.settings.get("config", {})
    lead = f"{config.get('model', 'model')} at {config.get('size_px', '?')} px on single head-CT slices"
    head = [page.paragraph(lead, "lead")]
    path = run / "report.html"
    path.write_text(page.page(f"Run {run.resolve().name}", head, sections, NOT_A_DEVICE), encoding="utf-8")
    return path


def number(value: float | None, digits: int = 3) -> str:
    """Return a score as text, a dash where it is undefined."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def missing(what: str, command: str) -> list[str]:
    """Return the block that stands where a part of the run is not there."""
    return [page.paragraph(f"{what} Run: {command}", "notice")]


def summary(results: Results) -> Section:
    """The key numbers, and how many patients, series and slices they rest on."""
    blocks = []
    if (side := results.shown) is not None:
        total = results.scores[side]
        worst = results.scores[side]["classes"]
        tiles = [(number(total["weighted_log_loss"], 4), f"weighted log loss, {side}")]
        if "any" in worst:
            tiles += [
                (number(worst["any"]["roc_auc"]), f"ROC AUC of any, {side}"),
                (number(worst["any"]["average_precision"]), f"average precision of any, {side}"),
            ]
        tiles.append((number(total["macro"]["f1"]), f"macro F1 at 0.5, {side}"))
        tiles.append((f"{len(results.predictions[side]):,}", f"slices in {side}"))
        blocks.append(page.tiles(tiles))
    else:
        blocks += missing("The run has no scores yet.", f"train evaluate --run {results.path} --split validation")
    blocks.append(_split_table(results))
    return Section("Summary", blocks)


def _split_table(results: Results) -> str:
    patients = results.split["split"].value_counts()
    classes = next((p.classes for p in results.predictions.values()), ())
    rows = []
    for side in SIDES:
        known = results.predictions.get(side)
        row = [side, f"{patients.get(side, 0):,}"]
        if known is None:
            row += [UNDEFINED] * (2 + len(classes))
        else:
            prevalence = [f"{100 * share:.1f} %" for share in _share(known.labels)]
            row += [f"{known.slices['series_instance_uid'].nunique():,}", f"{len(known):,}", *prevalence]
        rows.append(row)
    caption = "The data. No patient is on two sides. By class: the share of labelled slices that have the finding."
    return page.table(caption, ["side", "patients", "series", "slices", *classes], rows)


def _share(labels: np.ndarray) -> np.ndarray:
    known = ~np.isnan(labels)
    return np.nansum(labels, axis=0) / np.maximum(known.sum(axis=0), 1)


def training(results: Results) -> Section:
    """Loss, score and learning rate over the run."""
    log = results.log
    if not len(log):
        return Section("Training", missing("The run has no log yet.", "train run"))
    log = log.reindex(columns=log.columns.union(["split", "loss", "weighted_log_loss", "learning_rate"]))
    epochs = log[log["weighted_log_loss"].notna()]
    steps = log[log["loss"].notna() & (log["split"] != "validation")]
    x, loss = steps["step"].to_numpy(float), steps["loss"].to_numpy(float)
    lines = [("training batches", x, loss, "faint")]
    if len(loss) > 20:
        lines.append(("their running mean", x, _running_mean(loss), "line"))
    if epochs["loss"].notna().any():
        held_out = epochs[epochs["loss"].notna()]
        lines.append(("validation", held_out["step"].to_numpy(float), held_out["loss"].to_numpy(float), "points"))
    panels = [(figures.draw_history(lines, "step", "Loss"), "training and validation loss by step")]
    if len(epochs):
        line = ("validation", epochs["epoch"].to_numpy(float), epochs["weighted_log_loss"].to_numpy(float), "points")
        panels.append((figures.draw_history([line], "epoch", "Weighted log loss"), "weighted log loss by epoch"))
    rate = steps[steps["learning_rate"].notna()]
    if len(rate):
        line = ("rate", rate["step"].to_numpy(float), rate["learning_rate"].to_numpy(float), "line")
        panels.append((figures.draw_history([line], "step", "Learning rate"), "learning rate by step"))
    caption = (
        "Training. The loss of training batches is that of augmented and mixed images, so it lies above "
        "the validation loss of plain ones. The weights kept are those with the lowest validation log loss."
    )
    return Section("Training", [page.figure([(_svg(content), words) for content, words in panels], caption)])


def _running_mean(values: np.ndarray) -> np.ndarray:
    return pd.Series(values).ewm(span=max(10, len(values) // 20)).mean().to_numpy()


def _svg(content: bytes) -> str:
    return page.data_address(content, "image/svg+xml")


def scores(results: Results) -> Section:
    """The scores by class, micro and macro."""
    if (side := results.shown) is None:
        way_out = f"train evaluate --run {results.path} --split validation"
        return Section("Scores", missing("The run has no scores yet.", way_out))
    content = results.scores[side]
    head = ["class", "positive / all", *TABLE_SCORES.values()]
    rows = [
        [name, f"{of['positives']:,} / {of['n']:,}", *(number(of.get(key)) for key in TABLE_SCORES)]
        for name, of in content["classes"].items()
    ]
    rows += [
        [f"{kind} mean", "", *(number(content[kind][key]) if key in content[kind] else "" for key in TABLE_SCORES)]
        for kind in ("micro", "macro")
    ]
    caption = f"Scores on {side}, slice by slice. Precision, recall, specificity and F1 at a probability of 0.5."
    return Section("Scores", [page.table(caption, head, rows), *_undefined(content)])


def _undefined(content: dict[str, Any]) -> list[str]:
    reasons = [
        f"{name}: {TABLE_SCORES.get(key, key)}, {reason}"
        for name, of in content["classes"].items()
        for key, reason in of.get("undefined", {}).items()
    ]
    return [page.paragraph("Not defined: " + "; ".join(reasons) + ".", "lead")] if reasons else []


def curves(results: Results) -> Section:
    """ROC and precision-recall curves of all classes."""
    if (side := results.shown) is None:
        return Section("Curves", missing("The run has no predictions yet.", f"train evaluate --run {results.path}"))
    known = results.predictions[side]
    colour = figures.colours(known.classes)
    roc, precision_recall = [], []
    one = np.ones(1, np.int64)
    for k, name in enumerate(known.classes):
        ranking = Ranking(known.labels[:, k], known.probabilities[:, k], np.zeros(len(known), np.int64))
        area, average = ranking.scores(one)
        if not np.isnan(area):
            roc.append((f"{name}  {area:.3f}", *ranking.roc(one), colour[name]))
        if not np.isnan(average):
            precision_recall.append((f"{name}  {average:.3f}", *ranking.precision_recall(one), colour[name]))
    panels = [
        (
            figures.draw_curves(roc, "1 \N{MINUS SIGN} specificity", "recall (sensitivity)", "ROC", True),
            "ROC curves by class",
        ),
        (
            figures.draw_curves(precision_recall, "recall", "precision", "Precision-recall", False),
            "precision by recall",
        ),
    ]
    caption = (
        f"ROC and precision-recall curves on {side}, slice by slice; beside each name ROC AUC or average precision."
    )
    return Section("Curves", [page.figure([(_svg(content), words) for content, words in panels], caption, "22rem")])


def sheet(results: Results, cache: Cache | None) -> Section:
    """Some slices in all windows, with labels and probabilities."""
    if (side := results.shown) is None:
        return Section("Slices", missing("The run has no predictions yet.", f"train evaluate --run {results.path}"))
    if cache is None:
        return Section("Slices", missing("The cache was not given.", f"train report --run {results.path} --cache C"))
    known = results.predictions[side]
    chosen = choose_slices(known, SHEET_SLICES)
    images = read_images(cache, results.settings["config"]["size_px"], known.slices["row"].to_numpy()[chosen])
    windows = [window.name for window in cache.windows]
    items = [_card(known, line, image, windows) for line, image in zip(chosen, images, strict=True)]
    caption = (
        f"Slices of {side}: for each finding some that have it, then some without any, chosen by chance and not by "
        f"their probabilities. Windows from the left: {', '.join(windows)}. Labels in bold, probabilities as bars."
    )
    return Section("Slices", [page.cards(items, caption)])


def _card(known: Predictions, line: int, image: np.ndarray, windows: list[str]) -> str:
    slice_ = known.slices.iloc[line]
    bars = [
        (name, float(p), bool(y == 1))
        for name, p, y in zip(known.classes, known.probabilities[line], known.labels[line], strict=True)
    ]
    name = f"{slice_['image_id']} · position {slice_['z_norm']:.2f}"
    return page.card(window_pictures(image, windows), name, bars)


def choose_slices(known: Predictions, count: int) -> np.ndarray:
    """Choose lines to show: for each class in turn one that has it, then one without a finding, and so on.

    Returns:
        at most (count,) int64 lines, each once; the same for the same slices, in whatever order they stand.
    """
    shuffled = np.random.default_rng(0).permutation(len(known))
    by_name = np.argsort(known.slices["image_id"].to_numpy(str), kind="stable")[shuffled]
    positive = known.labels[by_name] == 1
    # `any` is implied by the others, so it gets no slices of its own where there are others.
    kinds = [positive[:, k] for k, name in enumerate(known.classes) if name != "any"] or [positive[:, 0]]
    queues = [list(by_name[kind]) for kind in (*kinds, ~positive.any(axis=1))]
    chosen: dict[int, None] = {}
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen[int(queue.pop(0))] = None
    return np.array(list(chosen), dtype=np.int64)


def settings(results: Results) -> Section:
    """Every setting that the run used."""
    rows = [[key, _plain(value)] for key, value in _flatten(results.settings)]
    return Section("Settings", [page.table("Settings as used.", ["setting", "value"], rows, text_columns=(1,))])


def _flatten(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

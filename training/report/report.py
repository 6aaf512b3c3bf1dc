"""The report of a run: one page on its settings, its scores and its errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.linked import describe
from training.data.neighbours import SERIES
from training.data.split import SUBSETS
from training.report import figures, page
from training.report.baselines import baselines
from training.report.heatmap import HeatMaps, open_heat_maps
from training.report.model_card import context_words, kept_weights, write_model_card
from training.report.page import Section
from training.report.scores import (
    UNDEFINED,
    curves,
    decisions,
    not_scored,
    number,
    scores,
    set_words,
)
from training.report.sets import other_sets
from training.report.slices import examples, mistakes, true_positives
from training.report.strips import strips
from training.report.subgroups import subgroups
from training.run.config import IMAGE_SETTINGS
from training.run.digests import write_atomically
from training.run.runs import open_run
from training.scores.headline import headline
from training.scores.metrics import SOFT_THRESHOLD
from training.scores.pooling import PLURAL
from training.scores.results import Results, read_results
from training.words import counted

NOT_A_DEVICE = "This is research software, not a medical device: it must not be used to diagnose or treat anyone."
SHORT_RUN_STEPS = 20


def write_report(run: Path, cache: Cache | None) -> Path:
    """Write run/report.html and run/model_card.md.

    Args:
        run: the run's folder.
        cache: the run's cache, for the pictures of slices; without it the report says that they are missing.

    Returns:
        The path of the report.

    Raises:
        RunError: if there is no run, or one of its files is damaged.
    """
    results = read_results(run)
    heat_maps = _heat_maps(results, cache)
    sections = [
        summary(results, cache),
        scores(results),
        baselines(results, cache),
        curves(results),
        decisions(results),
        subgroups(results),
        examples(results, cache),
        true_positives(results, cache, heat_maps),
        mistakes(results, cache, heat_maps),
        *strips(results, cache),
        other_sets(results),
        training(results),
        repeat(results),
    ]
    write_model_card(results)
    title = f"{_config(results).get('model', 'A model')} on {_input(results)}"
    path = run / "report.html"
    text = page.page(title, _lead(results), sections, page.paragraph(NOT_A_DEVICE))
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _config(results: Results) -> dict[str, Any]:
    return results.settings.get("config", {})


def _heat_maps(results: Results, cache: Cache | None) -> HeatMaps | None:
    if cache is None or results.shown is None or not (results.path / "weights.safetensors").exists():
        return None
    return open_heat_maps(open_run(results.path))


def _input(results: Results) -> str:
    head = _config(results).get("head", "none")
    return "single head-CT slices" if head == "none" else f"head-CT slices, with a head over their series ({head})"


def _lead(results: Results) -> list[str]:
    data = results.settings.get("data", {})
    position = "with" if _config(results).get("position", True) else "without"
    words = (
        f"Run folder {results.name}: {_config(results).get('size_px', '?')} px, {position} the slice's "
        f"position, {context_words(_config(results))}; cache {Path(data.get('cache', '?')).name}, "
        f"commit {data.get('commit', '?')}."
    )
    return [page.paragraph(words, "lead"), page.paragraph(NOT_A_DEVICE, "lead")]


def summary(results: Results, cache: Cache | None) -> Section:
    """Return the section with the key numbers and the size of the data."""
    blocks = _tiles(results) if results.shown else list(not_scored(results, "").blocks)
    blocks.append(_split_table(results, cache))
    blocks += [page.paragraph(f"{words}.", "notice") for words in describe(results.linked, len(results.split))]
    tests = results.looks[results.looks["what"].astype(str).str.startswith("test")]
    if len(tests) > 1:
        words = (
            f"The test set has been scored {len(tests)} times (looks.csv). Choices made in between may have been "
            "influenced by it."
        )
        blocks.append(page.paragraph(words, "notice"))
    return Section("Summary", blocks)


def _tiles(results: Results) -> list[str]:
    name = results.shown or ""
    content = results.scores[name]
    main, spans = headline(content), content.get("intervals") or {}

    def tile(value: float | None, between: list[float] | None, words: str, digits: int = 3) -> tuple[str, str]:
        interval = f" (95 % interval {between[0]:.{digits}f} to {between[1]:.{digits}f})" if between else ""
        return number(value, digits), f"{words}{interval}"

    known = results.predictions[name]
    patients = known.slices["patient_id"].nunique()
    return [
        page.tiles(
            [
                tile(content["weighted_log_loss"], spans.get("weighted_log_loss"), "weighted log loss", 4),
                tile(main.scores.get("roc_auc"), main.spans.get("roc_auc"), f"ROC AUC {main.words}"),
                tile(
                    main.scores.get("average_precision"),
                    main.spans.get("average_precision"),
                    f"average precision {main.words}",
                ),
                (
                    f"{len(known):,}",
                    f"{results.level if len(known) == 1 else PLURAL[results.level]} of {counted(patients, 'patient')} "
                    f"in {set_words(name)}",
                ),
            ]
        )
    ]


def _split_table(results: Results, cache: Cache | None) -> str:
    classes = next((known.classes for known in results.predictions.values()), ())
    rows = []
    for subset in SUBSETS:
        patients = set(results.split.loc[results.split["split"] == subset, "patient_id"])
        table = _slices_of(results, cache, subset, patients)
        row = [subset, f"{len(patients):,}"]
        if table is None:
            row += [UNDEFINED] * (2 + len(classes))
        else:
            share = [_share_of_positives(table[name].astype(float)) for name in classes]
            row += [f"{len(table[SERIES].drop_duplicates()):,}", f"{len(table):,}"]
            row += [UNDEFINED if np.isnan(part) else f"{100 * part:.1f} %" for part in share]
        rows.append(row)
    caption = (
        "Table 1. The data. No patient is in two subsets. Per class: the share of labelled slices with the finding."
    )
    return page.table(caption, ["subset", "patients", "series", "slices", *classes], rows)


def _share_of_positives(labels: pd.Series) -> float:
    known = labels.dropna()
    return float((known >= SOFT_THRESHOLD).mean()) if len(known) else np.nan


def _slices_of(results: Results, cache: Cache | None, subset: str, patients: set[str]) -> pd.DataFrame | None:
    if subset in results.predictions and results.level == "slice":
        known = results.predictions[subset]
        return known.slices.join(pd.DataFrame(known.labels, columns=list(known.classes)))
    return None if cache is None else cache.table[cache.table["patient_id"].isin(patients)]


def training(results: Results) -> Section:
    """Return the section with loss, score and learning rate over the run, and its throughput."""
    if not len(results.log):
        return Section("Training", [page.paragraph("The run has no log yet. Run: train run", "notice")])
    columns = ["split", "loss", "weighted_log_loss", "learning_rate", "images_per_s"]
    log = results.log.reindex(columns=results.log.columns.union(columns))
    steps = log[log["loss"].notna() & (log["split"] != "validation")]
    epochs = log[log["weighted_log_loss"].notna()]
    panels = _history(steps, epochs)
    caption = (
        "Figure 8. Training. Training batches are augmented and mixed, so their loss is above the loss on validation, "
        f"whose images are not. The run keeps {kept_weights(results)}."
    )
    blocks = [page.figure(panels, caption)]
    if (rates := log["images_per_s"].dropna()).size:
        device = results.settings.get("environment", {}).get("device", "an unknown device")
        words = f"Median throughput: {rates.median():,.0f} images/s on {device}, including reading and augmentation."
        blocks.append(page.paragraph(words))
    return Section("Training", blocks)


def _history(steps: pd.DataFrame, epochs: pd.DataFrame) -> list[tuple[bytes, str]]:
    x, loss = steps["step"].to_numpy(float), steps["loss"].to_numpy(float)
    lines = [("training batches", x, loss, "faint")]
    if len(loss) > SHORT_RUN_STEPS:
        lines.append(
            ("their running mean", x, steps["loss"].ewm(span=max(10, len(loss) // 20)).mean().to_numpy(), "line")
        )
    score = epochs["weighted_log_loss"].to_numpy(float)
    if len(epochs):
        lines.append(("validation", epochs["step"].to_numpy(float), score, "points"))
    panels = [(figures.draw_history(lines, "step", "Loss"), "loss by step")]
    if len(epochs):
        line = ("validation", epochs["epoch"].to_numpy(float) + 1, score, "points")
        panels.append((figures.draw_history([line], "epoch", "Weighted log loss on validation"), "score by epoch"))
    rate = steps[steps["learning_rate"].notna()]
    if len(rate):
        line = ("rate", rate["step"].to_numpy(float), rate["learning_rate"].to_numpy(float), "line")
        panels.append((figures.draw_history([line], "step", "Learning rate"), "learning rate by step"))
    return panels


def repeat(results: Results) -> Section:
    """Return the section with the command, the settings and the versions that reproduce the run."""
    config, data = _config(results), results.settings.get("data", {})
    cache = Path(data.get("cache", "CACHE")).name
    start = f"train run --cache {cache} --out RUN"
    if base := data.get("base"):
        start = f"train series --run {Path(base).name} --out RUN"
    settings = {key: value for key, value in config.items() if not (base and key in IMAGE_SETTINGS)}
    command = " \\\n    ".join([start, *(f"--set {key}={_setting(value)}" for key, value in settings.items())])
    words = (
        f"With the same cache content (commit {data.get('commit', '?')}) and the same split (SHA-256 "
        f"{data.get('split', '?')[:16]}), this command reproduces the run: bit for bit on a CPU with the same "
        "versions and number of threads."
    )
    rows = [[key, _plain(value)] for key, value in _flatten(results.settings)]
    table = page.table("Table 9. All settings.", ["setting", "value"], rows, text_columns=(1,))
    blocks = [page.paragraph(words), page.code(command), page.details("All settings, data and versions", table)]
    if len(results.looks):
        looks = results.looks.astype(str).to_numpy().tolist()
        caption = "Table 10. Every evaluation on the test set or an external set."
        blocks.append(page.table(caption, list(results.looks.columns), looks))
    return Section("Repeat", blocks)


def _setting(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}'" if " " in text else text


def _flatten(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""Test pages, scores and comparisons of sets with missing labels, classes, patients or errors."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testkit.fake_cache import CLASSES, write_cache
from testkit.fake_run import write_run
from training.data.cache import Cache, open_cache
from training.report import figures, subgroups
from training.report.figures import svg
from training.report.report import write_report
from training.scores import bands, evaluation
from training.scores.compare import compare, read_contestants
from training.scores.compare import to_text as compared
from training.scores.evaluation import choose_levels, evaluate_predictions, to_text
from training.scores.headline import headline
from training.scores.predictions import Predictions
from training.scores.ranking import Ranking
from training.scores.results import read_results

REASONS = {1: "1 patient differs", 5: "5 patients differ"}
PERFECT = {"skill": 60.0, "noise": 0.0}
# name: options of the cache, labels to set (None keeps them), options of the run, and a text in its report.
SETS: dict[str, tuple[dict[str, Any], float | None, dict[str, Any], str]] = {
    "perfect": ({"patients": 24}, None, PERFECT, "No mistakes on the test set"),
    "all negative": ({"patients": 24}, 0, {"skill": 6.0}, "No curves: no class has both"),
    "all positive": ({"patients": 24}, 1, {}, "No curves: no class has both"),
    "no label": ({"patients": 24}, np.nan, {}, "No curves: no class has both"),
    "one patient a subset": ({"patients": 3, "slices": 8}, None, {}, "with fewer than 6 patients"),
    "one slice a subset": ({"patients": 3, "slices": 1}, None, {}, "with fewer than 6 patients"),
    "one class": ({"patients": 24, "classes": ("bleed",)}, None, {}, "ROC AUC of bleed"),
    "no any": ({"patients": 24, "classes": ("epidural", "subdural")}, None, {}, "ROC AUC mean over the classes"),
    "any first": ({"patients": 24, "classes": ("any", "subdural")}, None, {}, "ROC AUC of any"),
}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use few draws, because the precision of intervals does not matter here."""
    monkeypatch.setattr(evaluation.evaluate_predictions, "__defaults__", (40,))
    monkeypatch.setattr(bands, "CURVE_RESAMPLES", 20)
    monkeypatch.setattr(subgroups, "GROUP_RESAMPLES", 20)


def content_of(folder: Path) -> dict[str, Any]:
    return dict(read_results(folder / "run0").scores["test"])


def open_set(folder: Path, options: dict[str, Any], label: float | None) -> Cache:
    cache = open_cache(write_cache(folder / "cache.zarr", **options).path)
    if label is None:
        return cache
    return replace(cache, table=cache.table.assign(**dict.fromkeys(cache.classes, label)))


@pytest.mark.parametrize("name", SETS)
def test_all_output_of_an_incomplete_set(name: str, tmp_path: Path) -> None:
    options, label, of_run, words = SETS[name]
    cache = open_set(tmp_path, options, label)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for seed in (0, 1):
            write_run(tmp_path / f"run{seed}", cache, seed=seed, **of_run)
        text = write_report(tmp_path / "run0", cache).read_text()
        table = compare(read_contestants([tmp_path / "run0", tmp_path / "run1"], "test"), resamples=100)
    assert words in re.sub(r"\s+", " ", text)
    shown = re.sub(r"<[^>]*>|data:[^\"]*", " ", text)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", shown)
    assert not re.search(r"\b1 (patients|slices|studies)\b", shown)
    not_drawn = " ".join(re.findall(r"Not drawn[^.]*", text))
    for panel in ("weighted log loss", f"ROC AUC {headline(content_of(tmp_path)).words}"):
        assert (f"{panel} by position" in text) != (panel in not_drawn)
    for content in read_results(tmp_path / "run0").scores.values():
        assert to_text(content, "test")
    assert compared(table, every_score=True)


@pytest.mark.parametrize("slices", [0, 1])
def test_no_and_one_slice_are_scored(slices: int, tmp_path: Path) -> None:
    cache = open_set(tmp_path, {"patients": 4}, None)
    write_run(tmp_path / "run", cache)
    full = read_results(tmp_path / "run").predictions["test"]
    known = Predictions(full.slices[:slices], CLASSES, full.labels[:slices], full.probabilities[:slices])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        content = evaluate_predictions(known, [1.0] * 6, choose_levels(known))
    assert (content["weighted_log_loss"] is None) == (not slices)
    assert content["intervals"]["weighted_log_loss"] is None
    assert "no intervals: they need at least 6 patients" in to_text(content, "test")


@pytest.mark.parametrize(
    ("classes", "words"), [(("any", "a"), "of any"), (("b",), "of b"), (("a", "b"), "mean over the classes")]
)
def test_the_headline_does_not_depend_on_the_order_of_classes(classes: tuple[str, ...], words: str) -> None:
    content = {"classes": {name: {"n": 3, "roc_auc": 0.1 * k} for k, name in enumerate(classes)}, "macro": {}}
    assert headline(content).words == words


@pytest.mark.parametrize(("patients", "starred"), [(1, False), (5, False), (6, True)])
def test_a_difference_needs_six_patients_that_differ(patients: int, starred: bool, tmp_path: Path) -> None:
    cache = open_set(tmp_path, {"patients": 60, "slices": 4}, None)
    for name in ("a", "b"):
        write_run(tmp_path / name, cache)
    first, second = read_contestants([tmp_path / "a", tmp_path / "b"], "test")
    names = second.known.slices["patient_id"].unique()[:patients]
    chosen = second.known.slices["patient_id"].isin(names).to_numpy()
    better = np.where(chosen[:, None], second.known.labels * 0.999 + 0.0005, second.known.probabilities)
    table = compare([first, replace(second, known=replace(second.known, probabilities=better))], resamples=200)
    line = table[(table["score"] == "weighted_log_loss")].iloc[0]
    assert np.isnan(line["low"]) == (not starred)
    assert line["no_interval"] == ("" if starred else f"{REASONS[patients]}, it needs 6")
    assert ("*" in compared(table[table["score"] == "weighted_log_loss"]).split("* the")[0]) == starred


def test_draws_without_positives_leave_the_band_undefined() -> None:
    labels = np.repeat([1.0, *[0.0] * 9], 2)
    ranking = Ranking(labels, labels * 0.8 + 0.1, np.repeat(np.arange(10), 2))
    band = bands.precision_recall_band(ranking, 10)
    assert np.isnan(band.low).all()  # a third of the draws have no curve


def test_curves_of_a_perfect_model_span_the_square_and_axes_stay_within_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[Any]] = {}

    def kept(figure: Any) -> bytes:
        axes = figure.axes[0]
        drawn.setdefault(axes.get_title(loc="left") or axes.get_title(), []).append(axes)
        return svg(figure)

    monkeypatch.setattr(figures, "svg", kept)
    cache = open_set(tmp_path, {"patients": 24}, None)
    write_run(tmp_path / "run", cache, **PERFECT)
    text = write_report(tmp_path / "run", cache).read_text()
    places, none = np.linspace(0.05, 0.95, 10), np.zeros(10)
    figures.draw_by_position(places, none, (none, none), ("share", "All negative"), most=1)
    for line in drawn["Precision-recall"][0].lines:
        assert (line.get_xdata().min(), line.get_xdata().max(), set(line.get_ydata())) == (0, 1, {1})
    by_position = [axes for found in drawn.values() for axes in found if "position" in axes.get_xlabel()]
    assert len(by_position) == 4
    for axes in by_position:
        low, high = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert min(ticks) >= 0
        assert "loss" in axes.get_ylabel() or max(ticks) <= 1
    (mean,) = re.findall(r"<tr><td>mean</td><td[^>]*>Youden</td>.*?</tr>", text, re.DOTALL)[:1]
    assert re.findall(r"<td[^>]*>(.*?)</td>", mean)[8] == ""  # specificity has no mean over the classes

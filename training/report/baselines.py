"""The baselines that a run must beat: the class shares of the training slices, and the slice position alone."""

from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.report import page
from training.report.page import Section
from training.report.scores import number, set_words
from training.scores.headline import headline
from training.scores.metrics import SOFT_THRESHOLD, score
from training.scores.results import Results

MIN_SLICES = 20  # each with and without the finding, needed to fit the position alone


def baselines(results: Results, cache: Cache | None) -> Section:
    """Return the section that compares the run with two models that see no image, on the same slices."""
    name = results.shown
    if name is None or cache is None or name == "external":
        words = "Baselines need the run's cache and its predictions on validation or test."
        return Section("Baselines", [page.paragraph(words, "notice")])
    known, content = results.predictions[name], results.scores[name]
    train = cache.table[cache.table["patient_id"].isin(_patients(results, "train"))]
    weights = np.array(results.settings["data"]["class_weights"], float)
    labels = np.asarray(known.labels, float)
    rows = [_row("this run", content)]
    for words, predicted in (
        ("position alone", _by_position(train, known.slices["z_norm"].to_numpy(), known.classes)),
        ("shares of the training slices", np.tile(_shares(train, known.classes), (len(labels), 1))),
    ):
        rows.append(_row(words, score(labels, predicted, known.classes, weights)))
    words = (
        f"This run and two models that see no image, on {set_words(name)}, slice by slice. Position alone: gradient "
        "boosting on the slice's position, fitted per class to the training slices."
    )
    header = ["", "weighted log loss", "ROC AUC", "average precision"]
    return Section("Baselines", [page.table(words, header, rows)])


def _row(words: str, content: dict[str, Any]) -> list[str]:
    main = headline(content).scores
    return [
        words,
        number(content["weighted_log_loss"], 4),
        number(main.get("roc_auc"), 3),
        number(main.get("average_precision"), 3),
    ]


def _patients(results: Results, subset: str) -> set[str]:
    return set(results.split.loc[results.split["split"] == subset, "patient_id"])


def _shares(train: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Return the mean label of each class, (K,) float64 in (0, 1)."""
    return np.clip(train[list(classes)].astype(float).mean().fillna(0).to_numpy(), 1e-6, 1 - 1e-6)


def _by_position(train: pd.DataFrame, z_norm: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Return (n, K) float64 probabilities from the position alone; the class's share with too few slices."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes 0.7 s to import

    predicted = np.tile(_shares(train, classes), (len(z_norm), 1))
    for k, name in enumerate(classes):
        known = train[train[name].notna()]
        positive = known[name].astype(float).to_numpy() >= SOFT_THRESHOLD
        if min(positive.sum(), (~positive).sum()) >= MIN_SLICES:
            model = HistGradientBoostingClassifier(random_state=0).fit(known[["z_norm"]].to_numpy(), positive)
            predicted[:, k] = model.predict_proba(z_norm[:, None])[:, 1]
    return predicted

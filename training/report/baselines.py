"""The baselines that a run must beat: the training slices' shares, and the slice position alone."""

from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.report import page
from training.report.page import Section
from training.report.scores import SETS, number
from training.scores.headline import headline
from training.scores.metrics import SOFT_THRESHOLD, score
from training.scores.results import Results

FEWEST = 20  # training slices of a class; with fewer there is nothing to fit


def baselines(results: Results, cache: Cache | None) -> Section:
    """The run's scores beside those of two models that see no picture, on the same slices."""
    name = results.shown
    if name is None or cache is None or name == "external":
        return Section("Baselines", [page.paragraph("They need the run's cache and its own predictions.", "notice")])
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
        f"Table. {SETS[name]}, slice by slice: this run beside what can be known without a picture. Position alone is "
        "a gradient boosting of each class on the slice's position, fitted to the training slices."
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
    """(K,) mean labels."""
    return np.clip(train[list(classes)].astype(float).mean().fillna(0).to_numpy(), 1e-6, 1 - 1e-6)


def _by_position(train: pd.DataFrame, z_norm: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """(n, K) probabilities from the position alone."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # 0.7 s

    predicted = np.tile(_shares(train, classes), (len(z_norm), 1))
    for k, name in enumerate(classes):
        known = train[train[name].notna()]
        positive = known[name].astype(float).to_numpy() >= SOFT_THRESHOLD
        if min(positive.sum(), (~positive).sum()) >= FEWEST:
            model = HistGradientBoostingClassifier(random_state=0).fit(known[["z_norm"]].to_numpy(), positive)
            predicted[:, k] = model.predict_proba(z_norm[:, None])[:, 1]
    return predicted

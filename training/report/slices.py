"""The sections of the report that show slices: examples, true positives, and the most confident mistakes."""

import numpy as np

from training.data.cache import Cache
from training.report import page
from training.report.heatmap import HeatMaps
from training.report.page import Section
from training.report.pictures import overlay, png_address, read_images, window_pictures
from training.report.scores import not_scored, set_words
from training.scores.metrics import SOFT_THRESHOLD
from training.scores.predictions import Predictions
from training.scores.results import Results

EXAMPLES = 12
TRUE_POSITIVES = 10
MISTAKES = 12


def examples(results: Results, cache: Cache | None) -> Section:
    """Return the section with some slices in all windows, with labels and probabilities."""
    if (name := results.shown) is None:
        return not_scored(results, "Slices")
    if cache is None:
        return _no_cache(results, "Slices")
    known = results.predictions[name]
    chosen = choose_slices(known, EXAMPLES)
    images = read_images(cache, results.settings["config"]["size_px"], known.slices["row"].to_numpy()[chosen])
    windows = [window.name for window in cache.windows]
    items = [
        page.card(window_pictures(image, windows), _title(known, line), _bars(known, line))
        for line, image in zip(chosen, images, strict=True)
    ]
    caption = (
        f"Figure 4. Random slices of {set_words(name)}: in turn one with each finding and one without any, chosen "
        f"without regard to the probabilities. {_window_words(windows)} Bold and blue: the label is positive. "
        "Bars: predicted probabilities."
    )
    return Section("Slices", [page.cards(items, caption)])


def true_positives(results: Results, cache: Cache | None, heat_maps: HeatMaps | None) -> Section:
    """Return the section with some true positives of each class and their heat maps."""
    title = "True positives"
    if (name := results.shown) is None:
        return not_scored(results, title)
    if cache is None:
        return _no_cache(results, title)
    known = results.predictions[name]
    at = results.scores[name].get("at_f1_threshold", {}).get("thresholds", {})
    hits = choose_true_positives(known, np.array([at.get(label, 0.5) for label in known.classes]), TRUE_POSITIVES)
    if not hits:
        return Section(title, [page.paragraph(f"No true positives on {set_words(name)}.")])
    threshold = "the F1 thresholds of Table 4" if at else "a threshold of 0.5"
    caption = f"Figure 5. True positives of {set_words(name)} at {threshold}, drawn at random from each class in turn. "
    return Section(title, [_heat_cards(results, cache, heat_maps, [(*hit, "true positive") for hit in hits], caption)])


def mistakes(results: Results, cache: Cache | None, heat_maps: HeatMaps | None) -> Section:
    """Return the section with the most confident wrong predictions and their heat maps."""
    title = "Mistakes"
    if (name := results.shown) is None:
        return not_scored(results, title)
    if cache is None:
        return _no_cache(results, title)
    known = results.predictions[name]
    wrong = most_confident_mistakes(known, MISTAKES)
    if not wrong:
        words = f"No mistakes on {set_words(name)}: no probability is more than 0.5 from its label."
        return Section(title, [page.paragraph(words)])
    caption = (
        f"Figure 6. The most confident mistakes on {set_words(name)}: in each class in turn, the slice whose "
        "probability is farthest from its label. The label may be wrong, too. "
    )
    positive = known.labels >= SOFT_THRESHOLD
    calls = [(line, k, "false negative" if positive[line, k] else "false positive") for line, k in wrong]
    return Section(title, [_heat_cards(results, cache, heat_maps, calls, caption)])


def _heat_cards(
    results: Results, cache: Cache, heat_maps: HeatMaps | None, chosen: list[tuple[int, int, str]], caption: str
) -> str:
    """Return cards of slices, each with the heat map of one class, and a caption that explains the maps.

    Args:
        chosen: line, class, and "true positive", "false positive" or "false negative".
    """
    known = results.predictions[results.shown or ""]
    lines, classes = (np.array([of[i] for of in chosen], np.int64) for i in range(2))
    rows, size_px = known.slices["row"].to_numpy()[lines], results.settings["config"]["size_px"]
    images = read_images(cache, size_px, rows)
    heat = None
    if heat_maps is not None:
        stacks = read_images(cache, size_px, rows, heat_maps.context)
        heat = heat_maps.compute(stacks, known.slices["z_norm"].to_numpy()[lines], classes)
    windows = [window.name for window in cache.windows]
    items = []
    for i, (line, k, call) in enumerate(chosen):
        pictures = window_pictures(images[i], windows)
        if heat is not None:
            pictures.append(
                (png_address(overlay(images[i, 0], heat[i])), f"where {known.classes[k]} was raised or lowered")
            )
        title = f"{known.classes[k]}: {call} · {_title(known, line)}"
        items.append(page.card(pictures, title, _bars(known, line)))
    caption += (
        f"Last picture: integrated gradients of that class over the {windows[0]} window. Orange places raised the "
        "probability, blue ones lowered it; the map shows where, not why."
        if heat is not None
        else f"No heat maps: {HeatMaps.MISSING}"
    )
    return page.cards(items, caption)


def _window_words(windows: list[str]) -> str:
    return f"Windows from left to right: {', '.join(windows)}." if len(windows) > 1 else f"Window: {windows[0]}."


def _no_cache(results: Results, title: str) -> Section:
    words = f"The cache is needed to show slices. Run: train report --run {results.name} --cache CACHE"
    return Section(title, [page.paragraph(words, "notice")])


def _title(known: Predictions, line: int) -> str:
    of = known.slices.iloc[line]
    return f"{of['image_id']} · position {of['z_norm']:.2f}"


def _bars(known: Predictions, line: int) -> list[tuple[str, float, bool]]:
    return [
        (name, float(p), bool(y >= SOFT_THRESHOLD))
        for name, p, y in zip(known.classes, known.probabilities[line], known.labels[line], strict=True)
    ]


def choose_slices(known: Predictions, count: int) -> np.ndarray:
    """Choose lines to show: one with each class in turn, then one without a finding, and again.

    Returns:
        Up to `count` distinct lines, int64. Which slices are chosen does not depend on their order.
    """
    shuffled = np.random.default_rng(0).permutation(len(known))
    by_name = np.argsort(known.slices["image_id"].to_numpy(str), kind="stable")[shuffled]
    positive = known.labels[by_name] >= SOFT_THRESHOLD
    # The other classes imply `any`, so it has slices of its own only if it is the only class.
    kinds = [positive[:, k] for k, name in enumerate(known.classes) if name != "any"] or [positive[:, 0]]
    queues = [list(by_name[kind]) for kind in (*kinds, ~positive.any(axis=1))]
    chosen: dict[int, None] = {}
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen[int(queue.pop(0))] = None
    return np.array(list(chosen), dtype=np.int64)


def choose_true_positives(known: Predictions, thresholds: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Choose true positives at random, from each class in turn.

    Args:
        known: predictions of slices.
        thresholds: (K,) float64.
        count: the maximum number.

    Returns:
        Line and class of each; no line occurs twice.
    """
    shuffled = np.random.default_rng(0).permutation(len(known))
    by_name = np.argsort(known.slices["image_id"].to_numpy(str), kind="stable")[shuffled]
    hit = (known.labels >= SOFT_THRESHOLD) & (known.probabilities >= thresholds)
    # The other classes imply `any`, so it has slices of its own only if it is the only class.
    classes = [k for k, name in enumerate(known.classes) if name != "any"] or [0]
    return _in_turn({k: [int(line) for line in by_name[hit[by_name, k]]] for k in classes}, count)


def most_confident_mistakes(known: Predictions, count: int) -> list[tuple[int, int]]:
    """Return lines and classes with |p - y| above 0.5, the worst of each class in turn; no line occurs twice."""
    error = np.nan_to_num(np.abs(known.probabilities - known.labels))
    worst = {k: np.argsort(-column, kind="stable") for k, column in enumerate(error.T)}
    return _in_turn({k: [int(line) for line in order if error[line, k] > 0.5] for k, order in worst.items()}, count)


def _in_turn(queues: dict[int, list[int]], count: int) -> list[tuple[int, int]]:
    """Take lines from the queue of each class in turn; return up to `count` pairs of a distinct line and its class."""
    taken: dict[int, int] = {}
    while len(taken) < count and any(queues.values()):
        for k, queue in queues.items():
            while queue and queue[0] in taken:
                queue.pop(0)
            if queue and len(taken) < count:
                taken[queue.pop(0)] = k
    return list(taken.items())

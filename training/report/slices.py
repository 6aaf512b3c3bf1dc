"""Write the report's sections that show slices: a sheet of them, and the most confident mistakes."""

import numpy as np

from training.data.cache import Cache
from training.report import page
from training.report.heatmap import HeatMaps
from training.report.page import Section
from training.report.pictures import overlay, png_address, read_images, window_pictures
from training.report.scores import SETS, not_there
from training.scores.metrics import SOFT_THRESHOLD
from training.scores.predictions import Predictions
from training.scores.results import Results

SHEET_SLICES = 12
MISTAKES = 12


def sheet(results: Results, cache: Cache | None) -> Section:
    """Some slices in all windows, with labels and probabilities."""
    if (name := results.shown) is None:
        return not_there(results, "Slices")
    if cache is None:
        return _no_cache(results, "Slices")
    known = results.predictions[name]
    chosen = choose_slices(known, SHEET_SLICES)
    images = read_images(cache, results.settings["config"]["size_px"], known.slices["row"].to_numpy()[chosen])
    windows = [window.name for window in cache.windows]
    items = [
        page.card(window_pictures(image, windows), _title(known, line), _bars(known, line))
        for line, image in zip(chosen, images, strict=True)
    ]
    caption = (
        f"Figure 4. Slices of {SETS[name]}: in turn one with each finding and one without any, chosen by chance, not "
        f"by their probabilities. {windows_in_words(windows)} Bold and blue: the label is positive. "
        "Bars: predicted probabilities."
    )
    return Section("Slices", [page.cards(items, caption)])


def mistakes(results: Results, cache: Cache | None, heat_maps: HeatMaps | None) -> Section:
    """The slices on which the run was most sure and wrong, with what it looked at."""
    title = "Mistakes"
    if (name := results.shown) is None:
        return not_there(results, title)
    if cache is None:
        return _no_cache(results, title)
    known = results.predictions[name]
    wrong = most_confident_mistakes(known, MISTAKES)
    if not wrong:
        words = f"No mistakes on {SETS[name]}: no probability lies more than 0.5 from its label."
        return Section(title, [page.paragraph(words)])
    lines = np.array([line for line, _ in wrong], np.int64)
    classes = np.array([k for _, k in wrong], np.int64)
    rows, size_px = known.slices["row"].to_numpy()[lines], results.settings["config"]["size_px"]
    images = read_images(cache, size_px, rows)
    heat = None
    if heat_maps is not None:
        stacks = read_images(cache, size_px, rows, heat_maps.context)
        heat = heat_maps.of(stacks, known.slices["z_norm"].to_numpy()[lines], classes)
    windows = [window.name for window in cache.windows]
    items = []
    for i, (line, k) in enumerate(wrong):
        pictures = window_pictures(images[i], windows)
        if heat is not None:
            pictures.append(
                (png_address(overlay(images[i, 0], heat[i])), f"where {known.classes[k]} was raised or lowered")
            )
        kind = "false negative" if known.labels[line, k] >= SOFT_THRESHOLD else "false positive"
        items.append(page.card(pictures, f"{known.classes[k]}: {kind} · {_title(known, line)}", _bars(known, line)))
    caption = (
        f"Figure 5. The most confident mistakes on {SETS[name]}: of each class in turn the slice whose probability "
        "lies farthest from its label; a label may be wrong, too. "
    )
    caption += (
        f"Last picture: Grad-CAM for that class on the {windows[0]} window; orange places raised the probability, "
        "blue ones lowered it; it says where, not why."
        if heat is not None
        else f"No heat maps: {HeatMaps.MISSING}"
    )
    return Section(title, [page.cards(items, caption)])


def windows_in_words(windows: list[str]) -> str:
    """Say which windows the pictures of a card are."""
    return f"Windows from the left: {', '.join(windows)}." if len(windows) > 1 else f"Window: {windows[0]}."


def _no_cache(results: Results, title: str) -> Section:
    words = f"The cache was not given. Run: train report --run {results.name} --cache CACHE"
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
    """Choose lines to show: for each class in turn one that has it, then one without a finding, and so on.

    Returns:
        at most (count,) int64 lines, each once; the same slices in whatever order they stand.
    """
    shuffled = np.random.default_rng(0).permutation(len(known))
    by_name = np.argsort(known.slices["image_id"].to_numpy(str), kind="stable")[shuffled]
    positive = known.labels[by_name] >= SOFT_THRESHOLD
    # `any` is implied by the others, so it gets no slices of its own where there are others.
    kinds = [positive[:, k] for k, name in enumerate(known.classes) if name != "any"] or [positive[:, 0]]
    queues = [list(by_name[kind]) for kind in (*kinds, ~positive.any(axis=1))]
    chosen: dict[int, None] = {}
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen[int(queue.pop(0))] = None
    return np.array(list(chosen), dtype=np.int64)


def most_confident_mistakes(known: Predictions, count: int) -> list[tuple[int, int]]:
    """Return lines and classes with |p - y| above 0.5, of each class in turn the worst; each slice at most once."""
    error = np.nan_to_num(np.abs(known.probabilities - known.labels))
    queues = [[int(line) for line in np.argsort(-column, kind="stable") if column[line] > 0.5] for column in error.T]
    found: dict[int, int] = {}
    while len(found) < count and any(queues):
        for k, queue in enumerate(queues):
            while queue and queue[0] in found:
                queue.pop(0)
            if queue and len(found) < count:
                found[queue.pop(0)] = k
    return list(found.items())

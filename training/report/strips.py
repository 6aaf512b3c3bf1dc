"""The section of the report that shows series: slices, labels, and probabilities with and without the head."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from training.data.cache import Cache
from training.data.neighbours import SERIES
from training.report import page
from training.report.figures import RC, SOFT, svg
from training.report.page import Section
from training.report.palette import colours
from training.report.pictures import read_images
from training.report.scores import set_words
from training.scores.predictions import Predictions, read_predictions
from training.scores.results import Results

MAX_SERIES = 3
PICTURES = 20  # per series at most, evenly spaced
PICTURE_PX = 64


def strips(results: Results, cache: Cache | None) -> list[Section]:
    """Return a section with some series if the run has a head over series, or an empty list.

    The labels alone decide: these are the series with the most positive slices, at most one per patient.
    """
    name = results.shown
    file = results.path / f"slice_predictions_{name}.csv"
    if name is None or not file.exists():
        return []
    # Read again, because `results` holds them pooled to the level of the labels.
    known, alone = (read_predictions(of) for of in (results.path / f"predictions_{name}.csv", file))
    panels = []
    for lines in choose_series(known, MAX_SERIES):
        pictures = None if cache is None else _pictures(results, cache, known, lines)
        words = f"series {known.slices['series_instance_uid'].iloc[lines[0]]}"
        panels.append((draw_strip(known, alone, lines, pictures), words))
    caption = (
        f"Figure 7. The series of {set_words(name)} with the most positive slices, from foot to head: pictures in the "
        "first window, and the probabilities of the classes that occur in the series. Solid: with the head over the "
        "series; dotted: the slice model alone; dots at the top: the label is positive."
    )
    return [Section("Series", [page.figure(panels, caption, width="60rem")])]


def choose_series(known: Predictions, count: int) -> list[np.ndarray]:
    """Return the lines of the series with the most positive slices, each from foot to head, at most one per patient."""
    of = known.slices.assign(line=np.arange(len(known)), positive=(known.labels == 1).any(axis=1))
    by_series = of.groupby(SERIES)["positive"].sum().reset_index()
    best = by_series.sort_values(["positive", "series_instance_uid"], ascending=[False, True], kind="stable")
    best = best.drop_duplicates("patient_id").head(count)
    of_series = of.sort_values("z_norm", kind="stable").groupby(SERIES)["line"]
    chosen = [of_series.get_group(names).to_numpy() for names in best[SERIES].itertuples(index=False, name=None)]
    return chosen


def shown_classes(known: Predictions, lines: np.ndarray) -> list[int]:
    """Return the classes that occur in a series, or, if none does, the one with the highest probability."""
    present = np.flatnonzero((known.labels[lines] == 1).any(axis=0))
    return present.tolist() or [int(known.probabilities[lines].max(axis=0).argmax())]


def draw_strip(known: Predictions, alone: Predictions, lines: np.ndarray, pictures: np.ndarray | None) -> bytes:
    """Return a drawing of one series as SVG.

    Args:
        known: predictions with the head.
        alone: predictions of the slice model, for the same slices.
        lines: (n,) lines of the series' slices, from foot to head.
        pictures: (m, S, S) uint8, of slices spread evenly over the series.
    """
    shades = colours(known.classes)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(11, 3.0), layout="constrained")
        strip, axes = figure.subplots(2, 1, height_ratios=[1, 2.6])
        strip.axis("off")
        if pictures is not None:
            strip.imshow(np.concatenate(list(pictures), axis=1), cmap="gray", vmin=0, vmax=255)
        place = np.arange(1, len(lines) + 1)
        for row, k in enumerate(shown_classes(known, lines)):
            name = known.classes[k]
            axes.plot(place, known.probabilities[lines, k], color=shades[name], label=name)
            axes.plot(place, alone.probabilities[lines, k], color=shades[name], linestyle=":")
            positive = known.labels[lines, k] == 1
            axes.plot(
                place[positive], np.full(positive.sum(), 1.06 + 0.06 * row), ".", color=shades[name], markersize=4
            )
        axes.set_xlabel("slice, foot to head", color=SOFT)
        axes.set_ylabel("probability")
        axes.set_xlim(0.5, len(lines) + 0.5)
        axes.set_ylim(-0.02, None)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return svg(figure)


def _pictures(results: Results, cache: Cache, known: Predictions, lines: np.ndarray) -> np.ndarray:
    """Return small pictures in the cache's first window, (m, S', S') uint8."""
    some = lines[np.unique(np.linspace(0, len(lines) - 1, min(PICTURES, len(lines))).round().astype(int))]
    rows = known.slices["row"].to_numpy()[some]
    images = read_images(cache, results.settings["config"]["size_px"], rows)[:, 0]
    step = max(1, images.shape[-1] // PICTURE_PX)
    return images[:, ::step, ::step]

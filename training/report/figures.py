"""The figures of the report, each a self-contained SVG."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.report.palette import COLOURS, INK
from training.scores.bands import GRID, Band, Reliability

SOFT = "#59636e"
LINE = "#d5d9de"
RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Liberation Sans", "Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "report",  # equal numbers give equal bytes
    "svg.fonttype": "path",  # looks the same without these fonts
}
MAX_POINTS = 600


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG; the same figure gives the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return content.getvalue()


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most 600 points of a curve, spread evenly along its length; a figure cannot show more."""
    if len(x) <= MAX_POINTS:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS)))
    return x[keep], y[keep]


def draw_history(series: Sequence[tuple[str, np.ndarray, np.ndarray, str]], x_label: str, title: str) -> bytes:
    """Return lines over training time as SVG.

    Args:
        series: name, x, y and style of each line; the style is "faint", "line" or "points".
        x_label: label of the x axis.
        title: title of the figure.
    """
    styles: dict[str, dict[str, Any]] = {
        "faint": {"color": "#b9c6d3", "linewidth": 0.9},
        "line": {"color": COLOURS[1]},
        "points": {"color": COLOURS[0], "marker": "o", "markersize": 4},
    }
    with matplotlib.rc_context(RC):
        figure, axes = _canvas(4.0, 2.9)
        for name, x, y, style in series:
            axes.plot(x, y, label=name, **styles[style])
        axes.set(xlabel=x_label, title=title)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.margins(x=0.02)
        highest = max((float(y[~np.isnan(y)].max()) for _, _, y, _ in series if not np.isnan(y).all()), default=1.0)
        axes.set_ylim(0, 1.06 * highest or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if len(series) > 1:
            axes.legend()
        return svg(figure)


def draw_curves(
    curves: Sequence[tuple[str, np.ndarray, np.ndarray, str]], x_label: str, y_label: str, title: str, *, diagonal: bool
) -> bytes:
    """Return curves in the unit square as SVG; `curves` holds the legend name, x, y and colour of each."""
    with matplotlib.rc_context(RC):
        figure, axes = _canvas(5.4, 5.4)
        _unit_square(axes, x_label, y_label, title, diagonal=diagonal)
        for name, x, y, colour in curves:
            axes.plot(*thin(x, y), label=name, color=colour)
        if curves:
            axes.legend(loc="lower right" if diagonal else "best")
        return svg(figure)


def draw_band(
    curve: tuple[np.ndarray, np.ndarray],
    band: Band,
    labels: tuple[str, str, str, str],
    colour: str,
    *,
    diagonal: bool,
) -> bytes:
    """Return one curve with its interval in the unit square as SVG.

    Args:
        curve: its x and y.
        band: its pointwise interval on `bands.GRID`.
        labels: label of x, label of y, the title, and a note below it, such as the area.
        colour: colour of curve and band.
        diagonal: whether to draw the diagonal of chance.
    """
    with matplotlib.rc_context(RC):
        figure, axes = _canvas(3.5, 3.5)
        *texts, note = labels
        _unit_square(axes, *texts, diagonal=diagonal)
        axes.fill_between(GRID, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(*thin(*curve), color=colour)
        axes.set_title(labels[2], pad=17)  # in points; leaves room for the note
        axes.annotate(note, (0, 1), (0, 4), "axes fraction", textcoords="offset points", color=SOFT, fontsize=7.5)
        return svg(figure)


def draw_reliability(plain: Reliability, calibrated: Reliability | None, title: str, colour: str) -> bytes:
    """Return observed against predicted frequency as SVG, above a histogram of the slices on a logarithmic scale."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(3.5, 4.1), layout="constrained")
        axes, counts = figure.subplots(2, 1, height_ratios=[5, 1], sharex=True)
        _unit_square(axes, "", "observed frequency", title, diagonal=True)
        axes.set_aspect("auto")  # gives both parts the same width
        bars = np.clip([plain.observed - plain.low, plain.high - plain.observed], 0, None)
        axes.errorbar(
            plain.predicted,
            plain.observed,
            bars,
            fmt="o",
            color=colour,
            markersize=4,
            linewidth=1,
            label="as predicted",
        )
        if calibrated is not None:
            axes.plot(
                calibrated.predicted,
                calibrated.observed,
                "D",
                color=SOFT,
                markersize=3.5,
                mfc="white",
                label="calibrated",
            )
            axes.legend(loc="upper left")
        width = 1 / len(plain.count)
        counts.bar(np.arange(len(plain.count)) * width, plain.count, width * 0.9, align="edge", color=LINE)
        counts.set(yscale="log", xlabel="predicted probability", ylabel="slices", ylim=(0.7, None))
        counts.minorticks_off()
        return svg(figure)


def draw_by_position(
    centres: np.ndarray,
    values: np.ndarray,
    interval: tuple[np.ndarray, np.ndarray],
    labels: tuple[str, str],
    *,
    most: float,
) -> bytes:
    """Return a score with its interval against the slice position, from foot to head, as SVG.

    Args:
        centres: (bins,) positions in [0, 1].
        values: (bins,) scores, NaN if undefined.
        interval: (bins,) lower and upper ends of the intervals, NaN if undefined.
        labels: label of y, and the title.
        most: largest possible value of the score.
    """
    with matplotlib.rc_context(RC):
        figure, axes = _canvas(4.0, 2.9)
        (low, high), (y_label, title) = interval, labels
        bars = np.clip([values - low, high - values], 0, None)
        axes.errorbar(centres, values, bars, fmt="o-", color=COLOURS[1], markersize=4, elinewidth=1)
        axes.set(xlabel="slice position (0 foot end, 1 head end)", ylabel=y_label, title=title, xlim=(0, 1))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        bottom, top = max(axes.get_ylim()[0], 0.0), min(axes.get_ylim()[1], most)
        margin = 0.03 * (top - bottom)  # room for dots at either end, without a tick
        axes.set_ylim(bottom - margin, top + margin)
        return svg(figure)


def _unit_square(axes: Axes, x_label: str, y_label: str, title: str, *, diagonal: bool) -> None:
    ticks = np.linspace(0, 1, 6)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xticks=ticks, yticks=ticks)
    axes.set(xlabel=x_label, ylabel=y_label, title=title, aspect="equal")
    axes.grid(color=LINE, linewidth=0.6)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))

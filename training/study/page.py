"""An answer as one self-contained HTML page: strips of slices, probabilities, and a viewer.

The templates in templates/ define how it looks and behaves; this module, what it shows.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from training.report.palette import colours
from training.report.pictures import LOWERED, MAX_OPACITY, RAISED, png_address
from training.study.model import Heat
from training.words import counted

CELL_PX = 84  # width of a slice in the strip
PLOT_PX = 170  # height of the plot
MARGIN_PX = 12  # above and below its curves


@dataclass(frozen=True)
class Mark:
    """The probability of a slice in the plot: position in pixels, and whether it is at or above the threshold."""

    x: float
    y: float
    positive: bool


@dataclass(frozen=True)
class Curve:
    """The probabilities of a class along a series."""

    name: str
    colour: str
    marks: Sequence[Mark]

    @property
    def points(self) -> str:
        return " ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in self.marks)


@dataclass(frozen=True)
class ShownSlice:
    """A slice on the page: its line in the document, a picture per window, its heat map or "", and the map's class."""

    line: Mapping[str, Any]
    pictures: Sequence[str]
    heat: str
    heat_of: str


@dataclass(frozen=True)
class ShownSeries:
    """A series on the page, from foot to head."""

    line: Mapping[str, Any]
    slices: Sequence[ShownSlice]
    curves: Sequence[Curve]

    @property
    def width_px(self) -> int:
        return CELL_PX * len(self.slices)


def study_page(document: Mapping[str, Any], images: np.ndarray, heat: Heat | None) -> str:
    """Return the HTML page of an answer.

    Args:
        document: the result of `to_document`.
        images: (n, C, S, S) uint8, in the order of the document's slices.
        heat: heat maps in the same order, or None.
    """
    shown = _slices(document, images, heat)
    series = [_series(line, document, shown) for line in document["series"]]
    template = _templates().get_template("answer.html")
    return template.render(
        document=document, run=document["run"], series=series, has_heat=heat is not None,
        colours=colours(document["classes"]), cell=CELL_PX, plot=PLOT_PX,
        grid=[(share, _height(share)) for share in (0, 0.5, 1)],
    )  # fmt: skip


@functools.cache
def _templates() -> jinja2.Environment:
    # The style sheet is that of the report.
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader("training.study"), jinja2.PackageLoader("training.report")])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # keep the order of the classes
    environment.filters["counted"] = counted
    environment.filters["number"] = lambda value: "-" if value is None else f"{value:.3f}"
    return environment


def _slices(document: Mapping[str, Any], images: np.ndarray, heat: Heat | None) -> list[ShownSlice]:
    shown = []
    for i, (line, image) in enumerate(zip(document["slices"], images, strict=True)):
        warm = "" if heat is None else heat_address(heat.maps[i])
        name = "" if heat is None else document["classes"][heat.classes[i]]
        shown.append(ShownSlice(line, [png_address(channel) for channel in image], warm, name))
    return shown


def heat_address(heat: np.ndarray) -> str:
    """Return heat, (S, S) float in [-1, 1], as a transparent overlay, orange above 0 and blue below, as a data URL."""
    colour = np.where(heat[..., None] > 0, RAISED, LOWERED)
    opacity = 255 * MAX_OPACITY * np.abs(heat[..., None])
    # Opacity in steps of 4 halves the size of the file without a visible difference.
    return png_address(np.concatenate([colour, np.round(opacity / 4) * 4], axis=-1).astype(np.uint8))


def _series(line: Mapping[str, Any], document: Mapping[str, Any], shown: Sequence[ShownSlice]) -> ShownSeries:
    own = [of for of in shown if (of.line["study"], of.line["series"]) == (line["study"], line["series"])]
    curves = [Curve(name, colour, _marks(own, name)) for name, colour in colours(document["classes"]).items()]
    return ShownSeries(line, own, [curve for curve in curves if curve.marks])


def _marks(own: Sequence[ShownSlice], name: str) -> list[Mark]:
    values = [of.line["classes"].get(name) for of in own]
    return [
        Mark((i + 0.5) * CELL_PX, _height(of["probability"]), of["decision"] == 1)
        for i, of in enumerate(values)
        if of is not None
    ]


def _height(probability: float) -> float:
    return MARGIN_PX + (PLOT_PX - 2 * MARGIN_PX) * (1 - probability)

"""Test that no texts in a figure overlap."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure

from training.report import figures
from training.scores.bands import GRID, Band


@pytest.mark.parametrize("diagonal", [True, False])
def test_the_longest_class_and_its_area_do_not_overlap(diagonal, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "svg", lambda figure: drawn.append(figure) or b"")
    edge = np.array([0.0, 1.0])
    band = Band(*(np.zeros(len(GRID)) for _ in range(2)))
    labels = ("recall", "precision", "intraparenchymal", "AUC 0.951 (0.898 to 0.984)")
    figures.draw_band((edge, edge), band, labels, "black", diagonal=diagonal)
    (figure,) = drawn
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [axes.title, axes._left_title, axes._right_title, *axes.texts]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert set(labels[2:]) == {text.get_text() for text in texts if text.get_text()}
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)

"""Leave the drawing of a report's figures out: it takes longer than a small run's training."""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

from training.report.figures import svg as drawn

BARE = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'


@contextlib.contextmanager
def bare_figures() -> Iterator[None]:
    """Put an empty figure in the place of every one, for tests of anything else than the report."""
    with (
        patch("training.report.figures.svg", lambda figure: BARE),
        patch("training.report.strips.svg", lambda figure: BARE),
    ):
        yield


@contextlib.contextmanager
def drawn_figures() -> Iterator[None]:
    """Draw every figure again, inside `bare_figures`."""
    with patch("training.report.figures.svg", drawn), patch("training.report.strips.svg", drawn):
        yield

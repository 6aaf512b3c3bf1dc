"""The colours of the classes, the same in every figure and on every page."""

from collections.abc import Sequence

# Okabe and Ito's palette, distinguishable with colour blindness, and two more colours; `any` is black.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#6A3D9A")
INK = "#1b1f24"


def colours(classes: Sequence[str]) -> dict[str, str]:
    """Return the colour of each class."""
    return {name: INK if name == "any" else COLOURS[k % len(COLOURS)] for k, name in enumerate(classes)}

"""This folder turns stored values into windowed, resized uint8 images: the hot path of a build."""

from pipeline.kernel.render import grey_levels, render

__all__ = ["grey_levels", "render"]

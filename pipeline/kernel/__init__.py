"""Turn stored values into windowed, resized uint8 images: the hot path of a build.

`plain.py` says in NumPy what it does; the other files do the same, compiled.
"""

from collections.abc import Callable

import numpy as np

from pipeline.compiled import compiled_or_plain
from pipeline.kernel import plain
from pipeline.kernel.plain import grey_levels
from pipeline.planning.catalog import Window

__all__ = ["grey_levels", "render"]

_Render = Callable[..., None]


def _compiled() -> _Render:
    from pipeline.kernel.render import render  # not above: whether numba can be had here is what is asked

    return render


def _is_right(render: _Render) -> bool:
    """Render a slice of noise with a signed and an unsigned reading of its values, as the plain form does."""
    noise = np.random.default_rng(0).integers(0, 1 << 16, (37, 41), np.uint16)
    windows = (Window("narrow", 40.0, 80.0), Window("wide", 600.0, 2800.0))
    for stored in (noise, noise.view(np.int16)):
        outcomes = []
        for form in (render, plain.render):
            images = [np.empty((2, size_px, size_px), np.uint8) for size_px in (16, 50)]
            sums = [np.empty((2, 2), np.uint64) for _ in images]
            form(stored, 0.7, -1024.0, (60_000, 60_010), windows, images, sums)
            outcomes.append([image.tobytes() for image in images] + [total.tobytes() for total in sums])
        if outcomes[0] != outcomes[1]:
            return False
    return True


render = compiled_or_plain("kernel", _compiled, _is_right, plain.render)

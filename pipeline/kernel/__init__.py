"""Convert stored values to windowed, resized uint8 images: the hot path of a build.

`plain.py` is the specification in NumPy; the other modules are the compiled implementation.
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
    from pipeline.kernel.render import render  # imported here, as numba may be missing or broken

    return render


def _self_test(render: _Render) -> bool:
    """Return whether signed and unsigned noise is rendered to the same bytes as in plain NumPy."""
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


render = compiled_or_plain("kernel", _compiled, _self_test, plain.render)

"""Leave the drawing of a report's figures out: it takes longer than a small run's training."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from unittest.mock import patch

from training.report import figures, strips

BARE = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'
DRAWN: list[tuple[ModuleType, str, Callable[..., bytes]]] = [
    (module, name, function)
    for module in (figures, strips)
    for name, function in vars(module).items()
    if name.startswith("draw_")
]


@contextlib.contextmanager
def bare_figures() -> Iterator[None]:
    """Put an empty figure in the place of every one, for tests of anything else than the report."""
    with contextlib.ExitStack() as patched:
        for module, name, _ in DRAWN:
            patched.enter_context(patch.object(module, name, lambda *_, **__: BARE))
        yield


@contextlib.contextmanager
def drawn_figures() -> Iterator[None]:
    """Draw every figure again, inside `bare_figures`."""
    with contextlib.ExitStack() as patched:
        for module, name, function in DRAWN:
            patched.enter_context(patch.object(module, name, function))
        yield

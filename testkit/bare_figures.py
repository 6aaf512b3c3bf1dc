"""Skip drawing the figures of reports, which takes longer than training a small run."""

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
    """Replace all figures by an empty one, for tests of anything but the report."""
    with contextlib.ExitStack() as patched:
        for module, name, _ in DRAWN:
            patched.enter_context(patch.object(module, name, lambda *_, **__: BARE))
        yield


@contextlib.contextmanager
def drawn_figures() -> Iterator[None]:
    """Draw figures nevertheless, inside `bare_figures`."""
    with contextlib.ExitStack() as patched:
        for module, name, function in DRAWN:
            patched.enter_context(patch.object(module, name, function))
        yield

"""Turn head-CT DICOM files into a training cache, from the command line or from Python.

The public interface is the names in `__all__`; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.errors import CacheError, CatalogError, PipelineError, SourceError
    from pipeline.library import build, plan, render
    from pipeline.planning.catalog import Window

__all__ = [
    "CacheError",
    "CatalogError",
    "PipelineError",
    "SourceError",
    "Window",
    "build",
    "plan",
    "render",
]

_HOMES = {
    "pipeline.errors": ("CacheError", "CatalogError", "PipelineError", "SourceError"),
    "pipeline.library": ("build", "plan", "render"),
    "pipeline.planning.catalog": ("Window",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""This package trains on a cache that `pipeline` built, by its commands or piece by piece from a program of one's own.

What `__all__` names is the public interface; a name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.dataset import SliceDataset
    from training.data.stream import Batch, Stream, on_device
    from training.errors import CacheError, ConfigError, RunError, TrainingError
    from training.library import Cache, load_model, open_cache

__all__ = [
    "Batch",
    "Cache",
    "CacheError",
    "ConfigError",
    "RunError",
    "SliceDataset",
    "Stream",
    "TrainingError",
    "load_model",
    "on_device",
    "open_cache",
]

_HOMES = {
    "training.data.dataset": ("SliceDataset",),
    "training.data.stream": ("Batch", "Stream", "on_device"),
    "training.errors": ("CacheError", "ConfigError", "RunError", "TrainingError"),
    "training.library": ("Cache", "load_model", "open_cache"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

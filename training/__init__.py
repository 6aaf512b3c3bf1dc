"""Train on a cache built by `pipeline`, from the command line or from Python.

The names in `__all__` are the public interface; each is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.batches import Batch
    from training.data.copies import on_device
    from training.data.dataset import SliceDataset
    from training.data.stream import Stream
    from training.errors import CacheError, ConfigError, RunError, TrainingError
    from training.library import Cache, fit, load_model, open_cache
    from training.run.config import Runtime, TrainConfig

__all__ = [
    "Batch",
    "Cache",
    "CacheError",
    "ConfigError",
    "RunError",
    "Runtime",
    "SliceDataset",
    "Stream",
    "TrainConfig",
    "TrainingError",
    "fit",
    "load_model",
    "on_device",
    "open_cache",
]

_HOMES = {
    "training.data.batches": ("Batch",),
    "training.data.copies": ("on_device",),
    "training.data.dataset": ("SliceDataset",),
    "training.data.stream": ("Stream",),
    "training.errors": ("CacheError", "ConfigError", "RunError", "TrainingError"),
    "training.library": ("Cache", "fit", "load_model", "open_cache"),
    "training.run.config": ("Runtime", "TrainConfig"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

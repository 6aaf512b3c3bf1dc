"""The properties of its cache that a run depends on, as recorded in settings.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.data.cache import Cache


@dataclass(frozen=True)
class Data:
    """The properties of its cache that a run depends on.

    Attributes:
        cache: folder or address of the cache.
        commit: id of the commit.
        windows: name, level and width (HU) in channel order.
        mean, std: per channel, of grey level / 255 over the training slices.
        split: SHA-256 of split.csv.
        label_level: what a label describes: slice, series, study or patient.
        linked: SHA-256 of linked.csv; empty in a run from before it was introduced.
        base, base_weights: for a head over series: the folder of the slice model's run, and the SHA-256 of its weights.
    """

    cache: str
    commit: str
    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    windows: tuple[tuple[str, float, float], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    split: str
    linked: str = ""
    label_level: str = "slice"
    base: str = ""
    base_weights: str = ""


def read_data(values: Mapping[str, Any]) -> Data:
    """Parse the data section of settings.json.

    Raises:
        ValueError: if a value does not have the type or length required by `Data`.
        TypeError: if the names are not those of `Data`.
    """
    data = Data(**{name: _tuples(value) for name, value in values.items()})
    _check(data)
    return data


def _check(data: Data) -> None:
    texts = (data.cache, data.commit, data.split, data.linked, data.label_level, data.base, data.base_weights)
    channels, numbers = len(data.windows), (*data.class_weights, *data.mean, *data.std)
    names = (*data.classes, *(name for name, _, _ in data.windows))
    right = (
        all(isinstance(text, str) for text in (*texts, *names))
        and all(type(number) in (int, float) for number in (*numbers, *(n for _, *of in data.windows for n in of)))
        and len(data.class_weights) == len(data.classes) == len(set(data.classes))
        and channels == len(data.mean) == len(data.std) > 0
        and data.label_level in ("slice", "series", "study", "patient")
    )
    if not right:
        raise ValueError("its data section is invalid")


def windows_of(cache: Cache) -> tuple[tuple[str, float, float], ...]:
    """Return the name, level and width (HU) of each of a cache's windows, in channel order."""
    return tuple((window.name, float(window.level_hu), float(window.width_hu)) for window in cache.windows)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value

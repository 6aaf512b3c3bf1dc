"""Find the slices next to a slice in its series, and say how they are stacked as channels."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.cache import Cache
from training.errors import CacheError, ConfigError

# Slices nearer than this lie at one position: scanners write positions to 0.001 mm or better.
SAME_POSITION_MM = 0.001
SERIES = ["patient_id", "study_instance_uid", "series_instance_uid"]
ALL_WINDOWS = "all"


@dataclass(frozen=True, slots=True)
class Context:
    """How many slices a network sees beside the one that it judges, and what of them.

    Attributes:
        slices: on each side, N.
        windows: (W,) numbers of the windows that it sees of each of the 2N neighbours; of the slice itself it sees all.
    """

    slices: int
    windows: tuple[int, ...]

    def channels(self, num_windows: int) -> tuple[int, ...]:
        """Return which window each channel of a stack shows: slices from foot to head, windows in the cache's order."""
        own = tuple(range(num_windows))
        return self.windows * self.slices + own + self.windows * self.slices


@dataclass(frozen=True, slots=True)
class SeriesOrder:
    """The placed slices of a cache, series by series from foot to head.

    A series is one of a patient, in a study, under a Series Instance UID. Slices without z_mm are not placed. Slices
    at one position follow each other by key, so the order depends on the content alone.

    Attributes:
        lines: (M,) int64 lines of the table.
        starts: (T + 1,) int64: series t has the lines starts[t]:starts[t + 1].
        z_mm: (M,) float64.
    """

    lines: np.ndarray
    starts: np.ndarray
    z_mm: np.ndarray


def choose_context(slices: int, windows: str, names: Sequence[str]) -> Context | None:
    """Return what the settings `context` and `context_windows` ask for; None where it is the slice alone.

    Args:
        windows: names with commas between them, or "all".
        names: the cache's windows, in channel order.

    Raises:
        ConfigError: a window that the cache does not have.
    """
    if not slices:
        return None
    wanted = list(names) if windows == ALL_WINDOWS else [name.strip() for name in windows.split(",")]
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the cache has {', '.join(names)}"
            raise ConfigError(f"--context-windows {windows}: no window {name!r}; {hint}")
    return Context(slices, tuple(number for number, name in enumerate(names) if name in wanted))


def order_series(cache: Cache) -> SeriesOrder:
    """Put the slices of every series in order.

    Raises:
        CacheError: no slice of the cache has a z_mm.
    """
    z_mm = cache.table["z_mm"].to_numpy(np.float64)
    placed = np.flatnonzero(~np.isnan(z_mm))
    if not len(placed):
        raise CacheError(
            f"{cache.path}: no slice has a z_mm, so no slice has known neighbours; use a run without --context and "
            "without a head over the series, or build from files with ImagePositionPatient"
        )
    series = cache.table.groupby(SERIES, sort=True).ngroup().to_numpy()
    order = np.lexsort((cache.keys[placed], z_mm[placed], series[placed]))
    lines = placed[order]
    begins = np.flatnonzero(np.diff(series[lines], prepend=-1))
    return SeriesOrder(lines, np.append(begins, len(lines)), z_mm[lines])


def find_neighbours(cache: Cache, slices: int) -> np.ndarray:
    """Find the slices around each slice of a cache, by position within its series.

    Neighbours lie at the next positions below and above; of several slices at one position that with the smallest key
    stands for it. Past the ends the outermost slice stands in, and a slice without z_mm for all its neighbours.
    Whether a slice has labels, and in which subset of a split it is, does not matter.

    Args:
        slices: on each side, N.

    Returns:
        (lines, 2N + 1) int64 lines of `cache.table`, from foot to head, each slice itself in the middle.

    Raises:
        CacheError: no slice of the cache has a z_mm.
    """
    order = order_series(cache)
    first = np.zeros(len(order.lines), bool)
    first[order.starts[:-1]] = True
    new_place = first | (np.diff(order.z_mm, prepend=-np.inf) > SAME_POSITION_MM)
    place = np.cumsum(new_place) - 1  # (M,) number of each slice's position
    standing = order.lines[new_place]  # the slice that stands for each position
    lowest = np.repeat(place[order.starts[:-1]], np.diff(order.starts))
    highest = np.repeat(place[order.starts[1:] - 1], np.diff(order.starts))
    found = np.repeat(np.arange(cache.num_slices)[:, None], 2 * slices + 1, axis=1)
    for column, step in enumerate(range(-slices, slices + 1)):
        wanted = np.clip(place + step, lowest, highest)
        found[order.lines, column] = np.where(wanted == place, order.lines, standing[wanted])
    return found

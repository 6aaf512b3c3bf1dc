"""Find the neighbours of each slice in its series, and define how they are stacked as channels."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.cache import Cache
from training.errors import CacheError, ConfigError

# Slices closer than this are at the same position: scanners write positions to 0.001 mm or better.
SAME_POSITION_MM = 0.001
SERIES = ["patient_id", "study_instance_uid", "series_instance_uid"]
ALL_WINDOWS = "all"


@dataclass(frozen=True, slots=True)
class Context:
    """How many neighbouring slices a network sees in addition to the one it classifies, and in which windows.

    Attributes:
        slices: N, neighbours on each side.
        windows: (W,) indices of the windows shown of each of the 2N neighbours; all are shown of the slice itself.
    """

    slices: int
    windows: tuple[int, ...]

    def channels(self, num_windows: int) -> tuple[int, ...]:
        """Return the window of each channel of a stack: slices from foot to head, windows in the cache's order."""
        own = tuple(range(num_windows))
        return self.windows * self.slices + own + self.windows * self.slices


@dataclass(frozen=True, slots=True)
class SeriesOrder:
    """The slices of a cache that have a z_mm, ordered by series and from foot to head.

    A series is identified by patient, study and Series Instance UID. Slices at the same position are ordered by key,
    so that the order depends only on the content.

    Attributes:
        lines: (M,) int64 lines of the table.
        starts: (T + 1,) int64: the lines of series t are lines[starts[t]:starts[t + 1]].
        z_mm: (M,) float64.
    """

    lines: np.ndarray
    starts: np.ndarray
    z_mm: np.ndarray


def choose_context(slices: int, windows: str, names: Sequence[str]) -> Context | None:
    """Return the context for the settings `context` and `context_windows`; None for single slices.

    Args:
        slices: neighbours on each side.
        windows: comma-separated names, or "all".
        names: the cache's windows, in channel order.

    Raises:
        ConfigError: if the cache does not have one of the windows.
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
    """Order the slices of every series by position.

    Raises:
        CacheError: if no slice of the cache has a z_mm.
    """
    z_mm = cache.table["z_mm"].to_numpy(np.float64)
    placed = np.flatnonzero(~np.isnan(z_mm))
    if not len(placed):
        raise CacheError(
            f"{cache.path}: no slice has a z_mm, so their neighbours are unknown; use a run without --context and "
            "without a head over the series, or build from files with ImagePositionPatient"
        )
    series = cache.table.groupby(SERIES, sort=True).ngroup().to_numpy()
    order = np.lexsort((cache.keys[placed], z_mm[placed], series[placed]))
    lines = placed[order]
    begins = np.flatnonzero(np.diff(series[lines], prepend=-1))
    return SeriesOrder(lines, np.append(begins, len(lines)), z_mm[lines])


def find_neighbours(cache: Cache, slices: int) -> np.ndarray:
    """Find the neighbours of each slice of a cache, by position within its series.

    Neighbours are the slices at the next positions below and above; if there are several at one position, the one with
    the smallest key is used. Past either end the outermost slice is repeated, and a slice without z_mm is used as all
    of its own neighbours. Labels and subsets of the split are ignored.

    Args:
        slices: N, neighbours on each side.

    Returns:
        (lines, 2N + 1) int64 lines of `cache.table`, from foot to head, with the slice itself in the middle.

    Raises:
        CacheError: if no slice of the cache has a z_mm.
    """
    order = order_series(cache)
    first = np.zeros(len(order.lines), bool)
    first[order.starts[:-1]] = True
    new_place = first | (np.diff(order.z_mm, prepend=-np.inf) > SAME_POSITION_MM)
    place = np.cumsum(new_place) - 1  # (M,) number of each slice's position
    standing = order.lines[new_place]  # the slice that represents each position
    lowest = np.repeat(place[order.starts[:-1]], np.diff(order.starts))
    highest = np.repeat(place[order.starts[1:] - 1], np.diff(order.starts))
    found = np.repeat(np.arange(cache.num_slices)[:, None], 2 * slices + 1, axis=1)
    for column, step in enumerate(range(-slices, slices + 1)):
        wanted = np.clip(place + step, lowest, highest)
        found[order.lines, column] = np.where(wanted == place, order.lines, standing[wanted])
    return found

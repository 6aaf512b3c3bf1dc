"""Decide whether a series can be of a head: a chest is full of enclosed air, which a head is not."""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from training.data.cache import Cache
from training.data.commit import Window
from training.report.pictures import read_images
from training.study.answer import series_keys

# Lungs hold -950 to -600 HU, fat -120; the sinuses and the mastoids of a head take a few per cent of it.
AIR_HU = -300.0
MOST_AIR = 0.15
OFTEN = 0.3  # of a series' slices: a series from the vertex to the lungs' tips is still of a head


def air_window(windows: tuple[Window, ...]) -> int | None:
    """Return the channel in which air is told from fat: its lower edge lies lowest, below AIR_HU; None without one."""
    edges = [window.level_hu - window.width_hu / 2 for window in windows]
    lowest = int(np.argmin(edges))
    return lowest if edges[lowest] < AIR_HU - 100 else None


def warnings_of(cache: Cache, size_px: int, lines: np.ndarray) -> Mapping[tuple[str, ...], str]:
    """Return by `series_keys` why a series does not look like a head; nothing where no window shows air."""
    channel = air_window(cache.windows)
    if channel is None or not len(lines):
        return {}
    window, table = cache.windows[channel], cache.table.iloc[lines]
    grey = 255 * (AIR_HU - window.level_hu + window.width_hu / 2) / window.width_hu
    images = read_images(cache, size_px, table["row"].to_numpy())[:, channel]
    airy: dict[tuple[str, ...], list[bool]] = {}
    for key, image in zip(series_keys(table), images, strict=True):
        airy.setdefault(key, []).append(enclosed_air(image >= grey) > MOST_AIR)
    return {
        key: f"does not look like a head: in {np.mean(of):.0%} of its slices over {MOST_AIR:.0%} of the body is air"
        for key, of in airy.items()
        if np.mean(of) > OFTEN
    }


def enclosed_air(solid: np.ndarray) -> float:
    """Return which share of the largest body's area, (S, S) bool, is air that it encloses; 0 where there is no body."""
    parts, count = ndimage.label(solid)
    if not count:
        return 0.0
    sizes = np.bincount(parts.ravel())[1:]
    body = parts == 1 + int(np.argmax(sizes))
    whole = ndimage.binary_fill_holes(body)
    area = int(whole.sum())
    return (area - int((whole & solid).sum())) / area

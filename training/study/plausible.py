"""A check whether a series shows a head: unlike a chest, a head encloses little air."""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from training.data.cache import Cache
from training.data.commit import Window
from training.report.pictures import read_images
from training.study.answer import series_keys

# Lungs have -950 to -600 HU, fat about -120. Sinuses and mastoids are a few per cent of a head.
AIR_HU = -300.0
MAX_AIR = 0.15  # share of the body in a slice
MAX_AIRY_SLICES = 0.3  # of a series; one from the vertex to the tips of the lungs still shows a head


def air_window(windows: tuple[Window, ...]) -> int | None:
    """Return the channel with the lowest lower edge, which separates air from fat; None if that is above -400 HU."""
    edges = [window.level_hu - window.width_hu / 2 for window in windows]
    lowest = int(np.argmin(edges))
    return lowest if edges[lowest] < AIR_HU - 100 else None


def warnings_of(cache: Cache, size_px: int, lines: np.ndarray) -> Mapping[tuple[str, ...], str]:
    """Return series key -> warning for series that do not look like a head; empty if no window shows air."""
    channel = air_window(cache.windows)
    if channel is None or not len(lines):
        return {}
    window, table = cache.windows[channel], cache.table.iloc[lines]
    grey = 255 * (AIR_HU - window.level_hu + window.width_hu / 2) / window.width_hu
    images = read_images(cache, size_px, table["row"].to_numpy())[:, channel]
    airy: dict[tuple[str, ...], list[bool]] = {}
    for key, image in zip(series_keys(table), images, strict=True):
        airy.setdefault(key, []).append(enclosed_air(image >= grey) > MAX_AIR)
    return {
        key: f"does not look like a head: in {np.mean(of):.0%} of its slices, over {MAX_AIR:.0%} of the body is air"
        for key, of in airy.items()
        if np.mean(of) > MAX_AIRY_SLICES
    }


def enclosed_air(solid: np.ndarray) -> float:
    """Return the share of enclosed air in the largest connected body of `solid`, (S, S) bool; 0 without a body."""
    parts, count = ndimage.label(solid)
    if not count:
        return 0.0
    sizes = np.bincount(parts.ravel())[1:]
    body = parts == 1 + int(np.argmax(sizes))
    filled = ndimage.binary_fill_holes(body)
    area = int(filled.sum())
    return (area - int((filled & solid).sum())) / area

"""Pictures of a cache's slices for the report, one per window."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.data.cache import Cache
from training.data.neighbours import Context
from training.data.shards import SliceReader
from training.data.stacks import StackReader
from training.report.page import data_address

RAISED, LOWERED = np.array([255.0, 106.0, 0.0]), np.array([0.0, 132.0, 255.0])
MAX_OPACITY = 0.55  # keeps the slice visible under the hottest place


def read_images(cache: Cache, size_px: int, rows: np.ndarray, context: Context | None = None) -> np.ndarray:
    """Return the images of some rows of the cache, (n, C, S, S) uint8; with context, C includes the neighbours."""
    order = np.argsort(cache.table["row"].to_numpy(), kind="stable")
    lines = order[np.searchsorted(cache.table["row"].to_numpy()[order], rows)]
    reader = SliceReader(cache, size_px, lines) if context is None else StackReader(cache, size_px, lines, context)
    images = np.empty((len(lines), *reader.shape), np.uint8)
    reader.read(np.arange(len(lines)), images.reshape(len(lines), int(np.prod(reader.shape))))
    return images


def window_pictures(image: np.ndarray, windows: Sequence[str]) -> list[tuple[str, str]]:
    """Return one picture per window, as a data URL, with its description.

    Args:
        image: (C, S, S) uint8 grey levels.
        windows: names of the C windows.
    """
    return [(png_address(channel), f"{name} window") for channel, name in zip(image, windows, strict=True)]


def overlay(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a slice with heat over it, orange above 0 and blue below, (S, S, 3) uint8.

    Args:
        grey: (S, S) uint8.
        heat: (S, S) float in [-1, 1].
    """
    share = MAX_OPACITY * np.abs(heat[..., None])
    colour = np.where(heat[..., None] > 0, RAISED, LOWERED)
    return np.round((1 - share) * grey[..., None] + share * colour).astype(np.uint8)


def png_address(pixels: np.ndarray) -> str:
    """Return (H, W) grey or (H, W, 3) colour uint8 as a data URL of a PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", optimize=True)
    return data_address(content.getvalue(), "image/png")

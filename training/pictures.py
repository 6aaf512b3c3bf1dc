"""This file turns slices of a cache into pictures for the report, one for each window."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.cache import Cache
from training.page import data_address


def window_pictures(image: np.ndarray, windows: Sequence[str]) -> list[tuple[str, str]]:
    """Return address and words of one picture a window.

    Args:
        image: (C, S, S) uint8 grey levels.
        windows: C names.
    """
    return [(png_address(channel), f"{name} window") for channel, name in zip(image, windows, strict=True)]


def png_address(pixels: np.ndarray) -> str:
    """Return (H, W) grey or (H, W, 3) colour uint8 as an address that holds a PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", optimize=True)
    return data_address(content.getvalue(), "image/png")


def read_images(cache: Cache, size_px: int, rows: np.ndarray) -> np.ndarray:
    """Return the images of some rows, (n, C, S, S) uint8."""
    import zarr

    return np.asarray(zarr.open_array(cache.array(size_px).path, mode="r").oindex[rows])

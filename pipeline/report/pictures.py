"""Choose the slices that the report shows, and encode them as PNG."""

import hashlib
import mmap
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.cache.commits import REPAIR, Commit
from pipeline.cache.documents import stored_array
from pipeline.cache.files import open_regular
from pipeline.cache.paths import Cache
from pipeline.cache.shards import Codec, read_image
from pipeline.errors import CacheError
from pipeline.tables.series import SERIES_KEY

SERIES = 8
SLICES = 3
LARGEST_PX = 256


def choose_slices(table: pd.DataFrame) -> list[tuple[tuple[str, str, str], np.ndarray]]:
    """Choose pseudo-random series, and evenly spaced slices of each; the choice does not depend on rows.

    Args:
        table: see `facts.Facts.table`.

    Returns:
        At most 8 pairs of the `SERIES_KEY` of a series and the index of at most 3 of its lines in the table, in the
        order of z. A second series of a patient, and series with fewer slices, are only chosen if there are no others.
    """
    grouped = table.groupby(list(SERIES_KEY))
    series = grouped.agg(patient=("patient_id", "first"), slices=("row", "size"))
    series["chance"] = [hashlib.blake2b("\n".join(key).encode(), digest_size=8).hexdigest() for key in series.index]
    series["short"] = series["slices"] < SLICES
    series = series.sort_values(["short", "chance"])
    series["turn"] = series.groupby("patient").cumcount()
    chosen = series.sort_values(["short", "turn", "chance"]).index[:SERIES]
    return [(key, _spread(table.loc[grouped.groups[key]])) for key in chosen]


def _spread(slices: pd.DataFrame) -> np.ndarray:
    lines = slices.sort_values("z_norm", kind="stable").index.to_numpy()
    if len(lines) <= SLICES:
        return lines
    return lines[((np.arange(SLICES) + 0.5) * len(lines) / SLICES).astype(int)]


def read_row(cache: Cache, head: Commit, row: int) -> np.ndarray:
    """Read one image of the smallest size, (C, S, S) uint8; if S is above 256, it is reduced by averaging blocks.

    Raises:
        CacheError: it is missing or damaged.
    """
    spec = min(head.terms.arrays, key=lambda spec: spec.size_px)
    array = stored_array(head.arrays[spec.images_path])
    shard, position = divmod(row, array.rows_per_shard)
    file = cache.images_file(spec, shard)
    try:
        with open_regular(file) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            image = read_image(content, array.shape, array.rows_per_shard, Codec.of(array), position)
    except (OSError, ValueError) as error:
        raise CacheError(f"{file}: row {position}: damaged ({error}); {REPAIR}") from error
    return _shrink(image, -(-spec.size_px // LARGEST_PX))


def _shrink(image: np.ndarray, step: int) -> np.ndarray:
    """Return the means of blocks of step x step pixels; an incomplete block at the edge is dropped."""
    channels, side = image.shape[0], image.shape[1] // step
    blocks = image[:, : side * step, : side * step].reshape(channels, side, step, side, step)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def encode_png(grey: np.ndarray) -> bytes:
    """Encode (H, W) uint8 grey levels as PNG, with filter 1 for all rows: the difference to the pixel on the left.

    Source: PNG (ISO/IEC 15948) 11.2.
    """
    rows = np.diff(grey, axis=1, prepend=np.uint8(0))
    filtered = np.insert(rows, 0, 1, axis=1)
    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    parts: Sequence[tuple[bytes, bytes]] = (
        (b"IHDR", head),
        (b"IDAT", zlib.compress(filtered.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

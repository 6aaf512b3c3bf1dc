"""Choose the slices that the report shows and turn them into PNG pictures."""

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
    """Choose series by chance, and slices spread evenly over each; the same ones wherever their rows lie.

    Args:
        table: as `report_facts.Facts.table`.

    Returns:
        at most 8 pairs: the series as `SERIES_KEY` names it; at most 3 lines of the table, in the order of z. One
        series a patient as long as there are patients, and short series last.
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
    """Read one image of the smallest size, (C, S, S) uint8; where S is above 256, means of blocks below it.

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
    """Means of blocks of step x step pixels; an incomplete block at the edge is left out."""
    channels, side = image.shape[0], image.shape[1] // step
    blocks = image[:, : side * step, : side * step].reshape(channels, side, step, side, step)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def encode_png(grey: np.ndarray) -> bytes:
    """Encode (H, W) uint8 grey levels.

    Source: PNG (ISO/IEC 15948) 11.2; every row with filter 1, the difference to the pixel on the left.
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

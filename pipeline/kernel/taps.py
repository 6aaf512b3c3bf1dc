"""The input pixels of each output pixel and their weights, in the layout that the compiled passes read."""

from functools import lru_cache

import numpy as np

from pipeline.kernel.lanes import HAS_BYTE_PRODUCTS, LANES, PARTS, QUAD, VECTOR_BYTES, WEIGHT_BYTES, pack_weights, zeros
from pipeline.kernel.plain import taps

MAX_NEAR_QUADS = 2

# Plain tuples, as in grey.py.
Groups = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Sizes = tuple[np.ndarray, int, bool]
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@lru_cache(maxsize=64)
def columns(width: int, sizes_px: tuple[int, ...]) -> tuple[Groups, Sizes, int]:
    """Return the layout of the horizontal pass: groups of 16 output pixels, for all sizes one after another.

    Returns:
        groups: for G groups, the first column of the band, including its margin, that each needs, (G,) int64; the
            column after the last, (G,) int64; the first column of each lane relative to that of its group, (16 G,)
            int64; the same for each pixel, uint8, for `permute`; and the weights, uint8.
        sizes: the first group of each size, and G, int64; the number of quads of a lane; whether `permute` can be used,
            as a vector covers all columns of a group.
        margin: number of columns that a group may read beyond either end of a band's rows.
    """
    lines = [taps(width, size_px) for size_px in sizes_px]
    num_groups = [-(-size_px // LANES) for size_px in sizes_px]
    edges = np.cumsum((0, *num_groups))
    num_quads = max(-(-weight.shape[1] // QUAD) for _, weight in lines)
    start = np.empty(edges[-1] * LANES, np.int64)
    weight = np.zeros((len(start), num_quads * QUAD), np.int32)
    for (first, some), begin, end in zip(lines, edges[:-1] * LANES, edges[1:] * LANES, strict=True):
        start[begin:end] = np.pad(first, (0, end - begin - len(first)), mode="edge")
        weight[begin : begin + len(some), : some.shape[1]] = some
    start = start.reshape(-1, LANES)
    bases, ends = start[:, 0].copy(), start[:, -1] + num_quads * QUAD
    offsets = start - bases[:, None]
    reach = int((ends - bases).max())
    near = HAS_BYTE_PRODUCTS and num_quads <= MAX_NEAR_QUADS and reach <= VECTOR_BYTES
    positions = (offsets[:, None, :, None] + np.arange(num_quads * QUAD).reshape(num_quads, 1, QUAD)).astype(np.uint8)
    weights = pack_weights(np.moveaxis(weight.reshape(-1, LANES, num_quads, QUAD), 2, 1))
    margin = -(-reach // VECTOR_BYTES) * VECTOR_BYTES
    groups = bases + margin, ends + margin, offsets.ravel(), _aligned(positions), _aligned(weights)
    return groups, (edges, num_quads, near), margin


@lru_cache(maxsize=64)
def rows(height: int, size_px: int) -> Rows:
    """Return the layout of the vertical pass, by output row.

    Returns:
        (S,) int64, the first quad of input rows; (S,) int64, the number of quads; and the weights, uint8, which are the
        same in all lanes.
    """
    start, weight = taps(height, size_px)
    first, place = start // QUAD, start % QUAD
    counts = (place + weight.shape[1] - 1) // QUAD + 1
    quads = np.zeros((size_px, counts.max() * QUAD), np.int32)
    np.put_along_axis(quads, place[:, None] + np.arange(weight.shape[1]), weight, axis=1)
    quads = np.repeat(quads.reshape(size_px, -1, 1, QUAD), LANES, axis=2)
    packed = np.zeros((size_px, counts.max() * PARTS * WEIGHT_BYTES), np.uint8)
    for line, count, some in zip(packed, counts, quads, strict=True):
        line[: count * PARTS * WEIGHT_BYTES] = pack_weights(some[:count])
    return first, counts, _aligned(packed)


def _aligned(numbers: np.ndarray) -> np.ndarray:
    """Return a flat copy that is aligned to a cache line, see `lanes.zeros`."""
    copy = zeros((numbers.size,))
    copy[:] = numbers.ravel()
    return copy

"""Lay out which pixels a pixel of a resized image is made of, and their weights, as the passes take them."""

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
    """The horizontal pass in groups of 16 output pixels, those of all sizes one after another.

    Returns:
        groups: of G groups the first column they need of a band with its margin, (G,) int64; the one after the last,
            (G,); of each lane its first column, from the group's, (16 G,) int64; the same of each pixel, uint8, as
            `permute` takes it; the weights.
        sizes: the groups where the sizes begin, and G, int64; the quads of a lane; whether `permute` reaches them all.
        margin: columns on either side of a band's rows, as many as a group may read beyond them.
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
    """The vertical pass, by output row.

    Returns:
        (S,) int64 first quad of input rows; (S,) int64 how many quads; their weights, the same in every lane.
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
    """The same bytes, flat, from the beginning of a cache line on: loads that straddle two take twice the time."""
    copy = zeros((numbers.size,))
    copy[:] = numbers.ravel()
    return copy

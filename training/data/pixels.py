"""Find slices that are identical in every pixel but belong to different patients."""

import hashlib

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.shards import SliceReader

# An image is trivial if nearly all of it has one grey level in every window: air with the edge of the table, or the
# last slice above the head. Two patients may well have the same such image.
TRIVIAL_SHARE = 0.01


def same_pixels(cache: Cache, size_px: int) -> list[np.ndarray]:
    """Return groups of lines whose images are identical in every pixel and which belong to more than one patient.

    Images with one grey level per channel (air is 0 in every window, so blank slices are all identical) and `trivial`
    ones are ignored. Only images with equal sums of grey levels are read: these sums are stored in the cache, and
    distinguish nearly all images.

    Returns:
        (n,) int64 lines of each group, ascending; the groups in the order of their first lines.
    """
    sums = cache.sums(size_px, cache.table["row"].to_numpy())
    candidates = np.flatnonzero(~blank(sums, size_px))
    patients = pd.factorize(cache.table["patient_id"])[0]
    suspects = np.concatenate([[], *_of_several(pixel_codes(sums)[candidates], candidates, patients)]).astype(np.int64)
    if not len(suspects):
        return []
    codes = _image_codes(cache, size_px, np.sort(suspects))
    lines = np.array([line for line, code in codes.items() if code is not None], np.int64)
    return _of_several(np.array([codes[line] for line in lines.tolist()], np.uint64), lines, patients)


def pixel_codes(sums: np.ndarray) -> np.ndarray:
    """Return a hash for each image, (n,) uint64, of the sums of its grey levels and their squares, (n, C, 2) uint64."""
    flat = pd.DataFrame(sums.reshape(len(sums), -1))
    return pd.util.hash_pandas_object(flat, index=False, categorize=False).to_numpy(np.uint64)


def blank(sums: np.ndarray, size_px: int) -> np.ndarray:
    """Return (n,) bool: whether each channel of an image has a single grey level, from its sums, (n, C, 2) uint64."""
    # The squared sum equals the number of pixels times the sum of squares if and only if all pixels are equal.
    return (sums[..., 0] ** 2 == sums[..., 1] * np.uint64(size_px**2)).all(axis=1)


def trivial(image: np.ndarray) -> bool:
    """Return whether under 1 % of pixels differ from the commonest grey level, in every channel of (C, S, S) uint8."""
    flat = image.reshape(len(image), -1)
    return all(np.bincount(channel).max() > (1 - TRIVIAL_SHARE) * len(channel) for channel in flat)


def _of_several(codes: np.ndarray, lines: np.ndarray, patients: np.ndarray) -> list[np.ndarray]:
    """Return the groups of `lines` with equal `codes`, both (n,), that span several of the patients, (N,) int."""
    order = np.argsort(codes, kind="stable")
    begins = np.flatnonzero(np.diff(codes[order], prepend=codes[order[:1]] ^ np.uint64(1)))
    sizes = np.diff(begins, append=len(order))
    groups = [lines[order[at : at + size]] for at, size in zip(begins, sizes, strict=True) if size > 1]
    several = [np.sort(group) for group in groups if len(set(patients[group].tolist())) > 1]
    return sorted(several, key=lambda group: int(group[0]))


def _image_codes(cache: Cache, size_px: int, lines: np.ndarray) -> dict[int, int | None]:
    """Return a code for each line, the same for identical images; None for a trivial one."""
    reader = SliceReader(cache, size_px, lines)
    image = np.empty((1, int(np.prod(reader.shape))), np.uint8)
    seen: dict[bytes, int | None] = {}
    codes: dict[int, int | None] = {}
    for which, line in enumerate(lines.tolist()):
        reader.read(np.array([which]), image)
        digest = hashlib.blake2b(image.data, digest_size=16).digest()
        if digest not in seen:
            seen[digest] = None if trivial(image.reshape(reader.shape)) else len(seen)
        codes[line] = seen[digest]
    return codes

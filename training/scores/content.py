"""A record of the content of a run's cache, slice by slice, for comparison with other caches."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from training.data.cache import Cache, open_cache
from training.data.pixels import pixel_codes
from training.errors import CacheError, RunError
from training.run.digests import check, write_atomically
from training.run.runs import Run

FILE = "content.npz"


@dataclass(frozen=True)
class Content:
    """The content of each slice in a cache as hash codes, which are equal if the content is equal.

    Attributes:
        keys: (N,) uint64, `Cache.keys`, ascending.
        facts: (N,) uint64, codes of patient, study, series, position and labels.
        pixels: (N,) uint64, codes of the sums of grey levels and of their squares.
    """

    keys: np.ndarray
    facts: np.ndarray
    pixels: np.ndarray


def content_of(cache: Cache, size_px: int) -> Content:
    """Return the content of a cache at one image size; it does not depend on the order of rows."""
    texts = ["patient_id", "study_instance_uid", "series_instance_uid"]
    # As objects, because the text types of pandas differ between versions.
    facts = cache.table[[*texts, "z_norm", *cache.classes]].astype(dict.fromkeys(texts, object))
    sums = cache.sums(size_px, cache.table["row"].to_numpy())
    order = np.argsort(cache.keys)
    return Content(cache.keys[order], _codes(facts)[order], pixel_codes(sums)[order])


def _codes(table: pd.DataFrame) -> np.ndarray:
    return pd.util.hash_pandas_object(table, index=False, categorize=False).to_numpy(np.uint64)


def write_content(run: Path, content: Content) -> None:
    """Write `content.npz`, about 24 bytes per slice."""
    write_atomically(run / FILE, lambda file: np.savez(file, **vars(content)))


def read_content(run: Path) -> Content:
    """Read `content.npz`.

    Raises:
        RunError: if it is missing or damaged.
    """
    check(run / FILE, "evaluate on the run's own commit")
    try:
        with np.load(run / FILE) as arrays:
            return Content(arrays["keys"], arrays["facts"], arrays["pixels"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise RunError(f"{run / FILE}: cannot be read ({error}); evaluate on the run's own commit") from error


def differences(before: Content, after: Content) -> list[str]:
    """Return the differences between the content of two caches, each as a phrase; empty if there are none."""
    _, old, new = np.intersect1d(before.keys, after.keys, assume_unique=True, return_indices=True)
    counts = {
        "gone": len(before.keys) - len(old),
        "added": len(after.keys) - len(new),
        "with a different patient, series, position or label": int((before.facts[old] != after.facts[new]).sum()),
        "with different pixels": int((before.pixels[old] != after.pixels[new]).sum()),
    }
    return [f"{count} {'slice' if count == 1 else 'slices'} {what}" for what, count in counts.items() if count]


def open_own_cache(run: Run, path: str | Path | None, local_copy: Path | None = None) -> Cache:
    """Open the cache that a run was trained on, or another with the same content.

    Args:
        run: the run.
        path: folder or address of the cache; None for the one recorded in the run.
        local_copy: see `open_cache`.

    Raises:
        RunError: if the cache has neither the run's commit nor the same content; the message lists the differences.
        CacheError: if `path` has no cache that can be opened.
    """
    where = path or run.data.cache
    try:
        return open_cache(where, run.data.commit, local_copy)
    except CacheError:
        try:
            cache = open_cache(where, local_copy=local_copy)
        except CacheError as error:
            if path is not None:
                raise
            raise RunError(f"{error}; if the run's cache has moved, give its new path with --cache") from error
    changes = differences(read_content(run.path), content_of(cache, run.config.size_px))
    if changes:
        raise RunError(
            f"{where}: its commit {cache.commit} differs from {run.data.commit}, which the run {run.path} was trained "
            f"on: {', '.join(changes)}; give the run's own cache, or score this one with: train evaluate --split "
            "external"
        )
    return cache

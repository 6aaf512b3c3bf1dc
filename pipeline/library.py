"""The Python interface of the pipeline: build, plan, and render a single DICOM file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.commits import Commit
from pipeline.cache.head import current_commit, refuse_other_key
from pipeline.cache.paths import Cache
from pipeline.engine import build as engine
from pipeline.errors import CatalogError, SourceError
from pipeline.planning.built import built_with
from pipeline.planning.catalog import MAX_WINDOWS, Reading, Window, load
from pipeline.planning.plan import Plan
from pipeline.planning.settings import BuildOptions, Request, Settings, Workers, find_dataset, make_settings
from pipeline.planning.survey import survey
from pipeline.tables import patients

SILENT = engine.Progress(*[lambda *_: None] * 5)


def build(  # noqa: PLR0913  # options of the public interface
    src: str | Path,
    out: str | Path,
    *,
    dataset: str | None = None,
    labels: str | Path | None = None,
    sizes: Sequence[int] = (),
    catalog: Path | None = None,
    patient_key: Path | None = None,
    workers: int = 0,
    prune: bool = False,
) -> Commit:
    """Build or update a cache, as `pipeline build` does with the same options, without printing anything.

    Args:
        src: folder, archive or URL of the DICOM files.
        out: folder of the cache.
        dataset: catalog entry; None for the one that the cache was built with, or `generic` for a new cache.
        labels: label file (CSV); None for the cache's own, or the catalog's.
        sizes: image sizes to add, in pixels; if empty, those of the cache, or the catalog's for a new cache.
        catalog: path of a data_catalog.yaml; None for ./data_catalog.yaml, or the one in the package.
        patient_key: file with the key for hashing patient ids; None for the user's default key.
        workers: number of local processes; 0 runs in this one. With more than 0, a script must guard its calls with
            `if __name__ == "__main__":`, because the worker processes import it.
        prune: whether to remove the slices of files that no longer exist.

    Returns:
        The current commit: a new one, or the previous one if nothing has changed. Files that gave no slice are counted
        in its `attributes.counts` and listed in rejects.csv.

    Raises:
        CatalogError, SourceError, CacheError: the build failed; the previous commit is intact and finished work is
            kept.
    """
    cache = Cache(Path(out))
    settings, key = find_settings(cache, _request(src, dataset, labels, sizes), catalog, patient_key)
    options = BuildOptions(key, prune=prune)
    return engine.build(cache, settings=settings, workers=Workers(workers), options=options, progress=SILENT).commit


def plan(  # noqa: PLR0913  # options of the public interface
    src: str | Path,
    out: str | Path,
    *,
    dataset: str | None = None,
    labels: str | Path | None = None,
    sizes: Sequence[int] = (),
    catalog: Path | None = None,
    patient_key: Path | None = None,
) -> Plan:
    """Return what `build` would do with the same arguments, and why, without writing anything.

    Returns:
        The plan. `commit` is whether there is anything to do, `slices_expected` the number of slices to convert, and
        `as_lines()` a description for people.

    Raises:
        CatalogError, SourceError, CacheError: as for `build`.
    """
    cache = Cache(Path(out))
    settings, _ = find_settings(cache, _request(src, dataset, labels, sizes), catalog, patient_key)
    return survey(cache, settings).plan


def render(dataset: Any, windows: Sequence[Window], size_px: int, frame: int = 0) -> np.ndarray:
    """Render one frame of a DICOM dataset to the same pixels that a build would store.

    Args:
        dataset: a pydicom.Dataset, as returned by dcmread; it is not changed.
        windows: the C windows, one per channel, 1 to 8.
        size_px: image size S in pixels.
        frame: index of the frame, counted from 0.

    Returns:
        (C, S, S) uint8 array; 0 is at or below a window's lower edge, 255 at or above its upper edge.

    Raises:
        SourceError: the frame is not a CT slice or cannot be decoded; the message has the same reason as rejects.csv.
        CatalogError: a window or the size is not possible.
    """
    from pipeline import kernel
    from pipeline.dicom.read import read_slices
    from pipeline.dicom.records import Reject

    for window in windows:
        if problem := window.problem():
            raise CatalogError(f"window {window.name}: {problem}")
    if size_px < 1 or not 1 <= len(windows) <= MAX_WINDOWS:
        raise CatalogError(
            f"render: {len(windows)} windows at {size_px} px: give 1 to {MAX_WINDOWS} windows and at least 1 px"
        )
    file = io.BytesIO()
    dataset.save_as(file)
    found = next(iter(read_slices(file.getvalue(), Reading(patient_ids="keep"), None, (frame, frame + 1))), None)
    if found is None:
        raise SourceError(f"the dataset has no frame {frame}; frames are counted from 0")
    if isinstance(found, Reject):
        raise SourceError(
            f"the dataset gives no slice: {found.message} ({found.code}); docs/accepted_files.md says why"
        )
    image, sums = np.empty((len(windows), size_px, size_px), np.uint8), np.empty((len(windows), 2), np.uint64)
    record = found.record
    kernel.render(found.stored, record.slope, record.intercept, found.padding, tuple(windows), [image], [sums])
    return image


def find_settings(
    cache: Cache, request: Request, catalog: Path | None, patient_key: Path | None
) -> tuple[Settings, bytes | None]:
    """Merge the request, the catalog and the settings that the cache was built with; read the patient key if needed.

    Returns:
        The settings of the build, and the patient key, or None if patient ids are not hashed.

    Raises:
        CatalogError, SourceError, CacheError: the settings contradict each other, or a file cannot be read.
    """
    found, built = load(catalog), built_with(current_commit(cache))
    _, entry = find_dataset(found, request, built)
    key = patients.read_key(patient_key) if entry.patient_ids == "hash" else None
    digest = patients.key_digest(key) if key else ""
    refuse_other_key(cache, digest)
    return make_settings(found, request, built, digest), key


def _request(src: str | Path, dataset: str | None, labels: str | Path | None, sizes: Sequence[int]) -> Request:
    return Request(str(src), dataset, tuple(sizes), labels=None if labels is None else str(labels))

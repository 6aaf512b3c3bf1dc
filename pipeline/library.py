"""The pipeline for a program or a notebook: build, plan, and render one DICOM file."""

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
from pipeline.planning.settings import Manner, Request, Settings, Workers, find_dataset, make_settings
from pipeline.planning.survey import survey
from pipeline.tables import patients

SILENT = engine.Progress(*[lambda *_: None] * 5)


def build(
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
    """Build a cache, or bring it up to date, as `pipeline build` with the same options; nothing is printed.

    Args:
        src: folder, archive or address of the DICOM files.
        out: folder of the cache.
        dataset: entry of the catalog; None for the one that the cache was built with, or `generic`.
        labels: label file; None for that of the cache, or of the catalog.
        sizes: image sides in pixels to add; none for those of the cache, or of the catalog.
        catalog: a data_catalog.yaml; None for the one that comes with the package.
        patient_key: file with the key that patient ids are hashed with; None for the user's own.
        workers: local processes; 0 runs in this one. A script that gives more keeps its calls under
            `if __name__ == "__main__"`, for they import it.
        prune: whether slices of files that are gone may leave.

    Returns:
        the current commit, a new one or, where nothing has changed, the one before. What gave no slice is counted in
        its `attributes.counts` and named in rejects.csv.

    Raises:
        CatalogError, SourceError, CacheError: with the old commit intact and the work resumable.
    """
    cache = Cache(Path(out))
    settings, key = find_settings(cache, _request(src, dataset, labels, sizes), catalog, patient_key)
    manner = Manner(key, prune=prune)
    return engine.build(cache, settings=settings, workers=Workers(workers), manner=manner, progress=SILENT).commit


def plan(
    src: str | Path,
    out: str | Path,
    *,
    dataset: str | None = None,
    labels: str | Path | None = None,
    sizes: Sequence[int] = (),
    catalog: Path | None = None,
    patient_key: Path | None = None,
) -> Plan:
    """Return what `build` with the same arguments would do and why; write nothing.

    `commit` says whether anything is to be done, `slices_expected` how many slices, `as_lines()` all of it in words.

    Raises:
        CatalogError, SourceError, CacheError: as `build`.
    """
    cache = Cache(Path(out))
    settings, _ = find_settings(cache, _request(src, dataset, labels, sizes), catalog, patient_key)
    return survey(cache, settings).plan


def render(dataset: Any, windows: Sequence[Window], size_px: int, frame: int = 0) -> np.ndarray:
    """Render one frame of a DICOM dataset as a build would: to the pixels of a cache.

    Args:
        dataset: a pydicom.Dataset, as dcmread gives it; it is not changed.
        windows: C of them, 1 to 8, the channels.
        size_px: image side S.
        frame: counted from 0.

    Returns:
        (C, S, S) uint8; 0 is a window's lower edge or below, 255 its upper edge or above.

    Raises:
        SourceError: it is not a CT slice, or cannot be decoded; the reason is that of rejects.csv.
        CatalogError: a window or the size is impossible.
    """
    from pipeline import kernel
    from pipeline.dicom.read import read_slices
    from pipeline.dicom.records import Reject

    for window in windows:
        if problem := window.problem():
            raise CatalogError(f"window {window.name}: {problem}")
    if size_px < 1 or not 1 <= len(windows) <= MAX_WINDOWS:
        raise CatalogError(f"render: {len(windows)} windows at {size_px} px give no image; give 1 to {MAX_WINDOWS}")
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
    """Put together what is asked for, the catalog, and what the cache was built with; read the patient key if needed.

    Raises:
        CatalogError, SourceError, CacheError: they do not fit together, or a file cannot be read.
    """
    found, built = load(catalog), built_with(current_commit(cache))
    _, entry = find_dataset(found, request, built)
    key = patients.read_key(patient_key) if entry.patient_ids == "hash" else None
    digest = patients.key_digest(key) if key else ""
    refuse_other_key(cache, digest)
    return make_settings(found, request, built, digest), key


def _request(src: str | Path, dataset: str | None, labels: str | Path | None, sizes: Sequence[int]) -> Request:
    return Request(str(src), dataset, tuple(sizes), labels=None if labels is None else str(labels))
